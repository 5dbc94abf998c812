//! Files too large for memory, and files that are mostly holes.

use std::{fs::File, os::unix::fs::FileExt as _};

use cleanroom_contract::Extent;

use super::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A file of `size` bytes, all hole but for these pieces.
fn sparse(path: &Path, size: u64, pieces: &[(u64, &[u8])]) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (offset, bytes) in pieces {
        file.write_all_at(bytes, *offset).unwrap();
    }
}

/// The bytes of a file that the system has in memory: holes that nobody reads never come there.
/// None, with a word, where `fincore` is not installed.
#[expect(clippy::print_stderr, reason = "a test that tests nothing must say so")]
fn cached_bytes(path: &Path) -> Option<u64> {
    let mut fincore = Command::new("fincore");
    fincore.args(["--bytes", "--noheadings", "--output", "res"]).arg(path);
    match fincore.output() {
        Ok(output) => Some(String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()),
        Err(error) => {
            eprintln!("not tested: whether holes are read (fincore: {error})");
            None
        }
    }
}

/// Writes rules and gives the option that names them.
fn rules(work: &TempDir, text: &str) -> [String; 2] {
    let path = work.path().join("rules.yar");
    fs::write(&path, text).unwrap();
    ["--rules".to_owned(), path.to_str().unwrap().to_owned()]
}

#[test]
fn holes_are_hashed_but_not_read() {
    let (folder, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (large, small) = (folder.path().join("large"), folder.path().join("small"));
    let end = b"the end".as_slice();
    let (in_large, in_small) = (300 * MIB + 1234, 50 * MIB + 77);
    sparse(&large, GIB, &[(0, b"start"), (in_large, b"PLANTED"), (GIB - 7, end)]);
    sparse(&small, 100 * MIB, &[(in_small, b"PLANTED"), (100 * MIB - 7, end)]);
    sparse(&folder.path().join("all hole"), 10 * MIB, &[]);
    let [option, path] = rules(&work, PLANTED);
    let evidence = folder.path().to_str().unwrap();
    let scan = scan(work.path(), &[evidence, &option, &path]);
    for (path, offset) in [(&large, in_large), (&small, in_small)] {
        // The data, and what the system reads ahead of it.
        let cached = cached_bytes(path).unwrap_or(0);
        assert!(cached < 2 * MIB, "{cached} bytes of {} were read", path.display());
        let file = scan.file(&format!("/{}", path.file_name().unwrap().display()));
        assert!(file.extents.is_none() && file.allocated < MIB, "{file:?}");
        assert_eq!(file.matches[0].patterns[0].offsets, [offset]);
        assert!(file.entropy.unwrap() < 0.001, "{:?}", file.entropy);
    }
    let digest = |path| scan.file(path).sha256.unwrap().to_string();
    assert_eq!(digest("/small"), sha256sum(&small));
    // What sha256sum says of the large one, for which it takes a quarter of a minute.
    let wanted = "7d8029f6211142ef6c663ba1095e5fff1fd20f3f2e853a7d8c84f8a497b4abd3";
    assert_eq!(digest("/large"), wanted);
    let hole = scan.file("/all hole");
    assert_eq!(hole.sha256.unwrap().to_string(), sha256sum(&folder.path().join("all hole")));
}

#[test]
fn a_file_of_too_many_holes_gets_a_digest_of_its_data() {
    let (folder, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (path, size) = (folder.path().join("vast"), 70 * GIB);
    let pieces: [(u64, &[u8]); 3] =
        [(4096, b"first"), (33 * GIB + 5, b"PLANTED"), (size - 4, b"last")];
    sparse(&path, size, &pieces);
    let [option, rule_path] = rules(&work, PLANTED);
    let evidence = folder.path().to_str().unwrap();
    let scan = scan(work.path(), &[evidence, &option, &rule_path]);
    let file = scan.file("/vast");
    assert_eq!((file.sha256, file.size), (None, size));
    let digest = file.extents.as_ref().unwrap();
    assert_eq!(digest.count, digest.extents.len() as u64);
    let reader = File::open(&path).unwrap();
    let mut data = Vec::new();
    for Extent { offset, length } in &digest.extents {
        let mut bytes = vec![0; usize::try_from(*length).unwrap()];
        reader.read_exact_at(&mut bytes, *offset).unwrap();
        data.extend(bytes);
    }
    for (offset, bytes) in pieces {
        let end = offset + bytes.len() as u64;
        let covers = |e: &Extent| e.offset <= offset && end <= e.offset + e.length;
        assert!(digest.extents.iter().any(covers), "{offset} in {:?}", digest.extents);
    }
    let copy = work.path().join("data");
    fs::write(&copy, data).unwrap();
    assert_eq!(digest.sha256.to_string(), sha256sum(&copy));
    let gaps = scan.gaps_of(GapKind::Sparse);
    assert_eq!((gaps.len(), scan.status), (1, 3), "{:?}", scan.gaps);
    assert_eq!(gaps[0].path.as_ref().unwrap().path, "/vast");
    assert_eq!(file.matches[0].patterns[0].offsets, [33 * GIB + 5]);
    assert!(scan.report.summary.bytes < MIB, "{} bytes were read", scan.report.summary.bytes);
}

/// What the block scan's tests look for: a text, and three rules that need the whole file.
const BLOCK_RULES: &str = r#"
import "elf"
rule planted { strings: $a = "PLANTED-ACROSS-THE-SEAM" condition: $a }
rule absent { strings: $a = "is nowhere in there" condition: $a }
rule sized { condition: filesize > 10 }
rule headed { condition: uint16(1) == 0x7878 }
rule parsed { condition: elf.type == elf.ET_EXEC }
"#;

#[test]
fn a_file_above_the_memory_limit_is_judged_in_blocks() {
    let (folder, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let needle = b"PLANTED-ACROSS-THE-SEAM".as_slice();
    // Blocks are 8 MiB and share 256 KiB: the first offset lies across the end of one, the second
    // in what two of them share, the third ends with the file.
    let (size, blocks) = (20 * MIB, 8 * MIB);
    let offsets = [blocks - 100_000, blocks - 8, size - needle.len() as u64];
    let mut content = vec![b'x'; usize::try_from(size).unwrap()];
    fs::write(folder.path().join("clean"), &content).unwrap();
    for offset in offsets {
        let at = usize::try_from(offset).unwrap();
        content[at..at + needle.len()].copy_from_slice(needle);
    }
    fs::write(folder.path().join("matched"), &content).unwrap();
    fs::write(folder.path().join("small"), needle).unwrap();
    let [option, path] = rules(&work, BLOCK_RULES);
    let evidence = folder.path().to_str().unwrap();
    let scan = scan(work.path(), &[evidence, &option, &path, "--memory", "2M", "--threads", "1"]);

    let matched = scan.file("/matched");
    assert_eq!(matched.sha256.unwrap().to_string(), sha256sum(&folder.path().join("matched")));
    assert_eq!((matched.scan, matched.matches.len()), (ScanState::Matched, 1), "{matched:?}");
    let pattern = &matched.matches[0].patterns[0];
    assert_eq!((pattern.offsets.as_slice(), pattern.count), (offsets.as_slice(), 3));
    assert_eq!(BASE64_STANDARD.decode(&pattern.bytes[0]).unwrap(), needle);

    let clean = scan.file("/clean");
    assert_eq!(clean.sha256.unwrap().to_string(), sha256sum(&folder.path().join("clean")));
    assert_eq!((clean.scan, clean.matches.len()), (ScanState::Partial, 0), "never called clean");
    assert!((clean.entropy.unwrap()).abs() < 0.001, "{:?}", clean.entropy);

    let gaps = scan.gaps_of(GapKind::Partial);
    let told: Vec<_> =
        gaps.iter().map(|gap| (gap.path.as_ref().unwrap().path.as_str(), gap.count)).collect();
    assert_eq!(told, [("/clean", 3), ("/matched", 3)], "{gaps:?}");
    assert_eq!((scan.status, scan.gaps.len()), (3, 2));

    let small = scan.file("/small");
    let names: Vec<_> = small.matches.iter().map(|found| found.rule.as_str()).collect();
    assert_eq!(names, ["planted", "sized"], "in memory every rule is judged");
}

#[test]
fn a_file_above_the_memory_limit_without_rules_has_no_gap() {
    let (folder, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = folder.path().join("large");
    fs::write(&path, (0..5_000_000_u32).map(|n| n.to_le_bytes()[1]).collect::<Vec<_>>()).unwrap();
    let evidence = folder.path().to_str().unwrap();
    let scan = scan(work.path(), &[evidence, "--memory", "1M", "--digest", "sha1"]);
    let file = scan.file("/large");
    assert_eq!(file.sha256.unwrap().to_string(), sha256sum(&path));
    assert_eq!(file.sha1, Some(digest_by("sha1sum", &path)));
    let want = entropy(&fs::read(&path).unwrap());
    assert!((file.entropy.unwrap() - want).abs() < 0.0011, "{:?} {want}", file.entropy);
    assert_eq!((scan.status, scan.gaps.len()), (0, 0), "{:?}", scan.gaps);
}
