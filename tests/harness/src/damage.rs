//! Damage done to images on purpose: what a crash, a broken disk or an attacker leaves behind.
//!
//! Touches the image it is given, or a copy. Only [`dirty_copy`] mounts anything, in a mount
//! namespace of its own, and only images that were built here.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    disk::{SECTOR, copy_sparse},
    elf::noise,
    tools::{command, is_root, run},
};

/// The folder and file that [`dirty_copy`] leaves in the journal alone.
pub const DIRTY_FILE: &str = "/after-the-checkpoint/evidence.txt";

/// What that file holds.
pub const DIRTY_CONTENT: &str = "written before the crash\n";

/// A copy of the first `len` bytes of an image.
///
/// # Errors
/// Where reading or writing fails.
pub fn truncated_copy(image: &Path, copy: &Path, len: u64) -> Result<()> {
    sparse_copy(image, copy)?;
    let file = OpenOptions::new().write(true).open(copy)?;
    file.set_len(len).with_context(|| format!("shorten {}", copy.display()))
}

/// A copy of an image whose holes stay holes.
///
/// # Errors
/// Where reading or writing fails.
pub fn sparse_copy(image: &Path, copy: &Path) -> Result<()> {
    let source = File::open(image).with_context(|| format!("open {}", image.display()))?;
    let len = source.metadata()?.len();
    let target = File::create(copy).with_context(|| format!("create {}", copy.display()))?;
    target.set_len(len)?;
    copy_sparse(source, &target, 0)
}

/// Sets the ext superblock's `needs_recovery` mark, without there being anything to recover: what
/// a detector sees of a dirty journal, for tests without root.
///
/// # Errors
/// Where `debugfs` refuses.
pub fn mark_needs_recovery(image: &Path) -> Result<()> {
    let mut debugfs = command("debugfs")?;
    run(debugfs.args(["-w", "-R", "feature needs_recovery"]).arg(image))?;
    Ok(())
}

/// Copies a mounted image in the moment after a file was fsynced: its journal (ext3/4, XFS) or log
/// tree (btrfs) then holds [`DIRTY_FILE`], and the file system proper does not.
///
/// The original image is mounted, written to and unmounted. Loop device and mount live in a
/// mount namespace that ends with the command, however it ends.
///
/// # Errors
/// Without root, or where mounting fails.
pub fn dirty_copy(image: &Path, copy: &Path) -> Result<()> {
    ensure!(is_root(), "a dirty image needs root: it is made by mounting");
    let at = tempfile::tempdir().context("create a mount point")?;
    // `sync FILE` is fsync(2) of this one file; a plain `sync` would write everything to its
    // final place. The copy's own pages are none of the file system's concern.
    let script = r#"
        mount -o loop "$1" "$3"
        mkdir "$3/after-the-checkpoint"
        printf '%s' "$4" > "$3/after-the-checkpoint/evidence.txt"
        sync "$3/after-the-checkpoint/evidence.txt"
        cp --sparse=always "$1" "$2"
        umount "$3"
    "#;
    let mut shell = command("unshare")?;
    shell.args(["--mount", "--propagation", "private", "sh", "-euc", script, "sh"]);
    run(shell.arg(image).arg(copy).arg(at.path()).arg(DIRTY_CONTENT))?;
    Ok(())
}

/// Makes an ext3 or ext4 image ask the kernel to panic (`tune2fs -e panic`) and damages `folder`
/// in it, so that listing this folder is the error that triggers it, unless the mount options say
/// `errors=continue`. Only ever mount it inside the virtual machine.
///
/// # Errors
/// Where `tune2fs` or `debugfs` refuse, or there is no such folder.
pub fn panic_on_error(image: &Path, folder: &str) -> Result<()> {
    run(command("tune2fs")?.args(["-e", "panic"]).arg(image))?;
    let numbers = |command: &mut std::process::Command| -> Result<Vec<u64>> {
        let text = String::from_utf8_lossy(&run(command)?).into_owned();
        Ok(text.split_whitespace().filter_map(|word| word.parse().ok()).collect())
    };
    let request = format!("blocks {folder}");
    let blocks = numbers(command("debugfs")?.args(["-R", &request]).arg(image))?;
    let Some(block) = blocks.first() else { bail!("{folder} has no blocks") };
    let size = block_size(image)?;
    let file = OpenOptions::new().write(true).open(image)?;
    // A record length of 0xfffe reaches past the block: an error whatever the checksums say.
    file.write_all_at(&[0xff, 0xff, 0xff, 0xff, 0xfe, 0xff, 0xff, 0xff], block * size)?;
    Ok(())
}

/// Bytes in a block of an ext file system: 1024 << `s_log_block_size`, which is at offset 24 of the
/// superblock at 1024 (ext4 disk layout, kernel documentation).
fn block_size(image: &Path) -> Result<u64> {
    let mut field = [0; 4];
    File::open(image)?.read_exact_at(&mut field, 1024 + 24).context("read the superblock")?;
    Ok(1024_u64 << u32::from_le_bytes(field).min(6))
}

/// Moves a GPT partition to other sectors, first and last included, in both tables, and makes the
/// checksums right again: the table is well-formed, and a lie.
///
/// # Errors
/// Where the image has no GPT, or no such partition (`number` counts from 1).
pub fn gpt_move(image: &Path, number: u32, first: u64, last: u64) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(image)?;
    let end = file.metadata()?.len();
    for header_at in [SECTOR, end.saturating_sub(SECTOR)] {
        // Offsets from the UEFI specification, section 5.3.2.
        let mut header = [0; 92];
        file.read_exact_at(&mut header, header_at)?;
        ensure!(header.starts_with(b"EFI PART"), "no GPT header at {header_at}");
        let count = number_at(&header, 80, 4)?;
        let size = number_at(&header, 84, 4)?;
        let table_at = number_at(&header, 72, 8)? * SECTOR;
        ensure!((1..=count).contains(&u64::from(number)) && count <= 1024 && size <= 4096);
        let mut table = vec![0; usize::try_from(count * size)?];
        file.read_exact_at(&mut table, table_at)?;
        let entry = usize::try_from((u64::from(number) - 1) * size)?;
        put(&mut table, entry + 32, &first.to_le_bytes())?;
        put(&mut table, entry + 40, &last.to_le_bytes())?;
        put(&mut header, 88, &crc32(&table).to_le_bytes())?;
        put(&mut header, 16, &[0; 4])?;
        let checksum = crc32(&header);
        put(&mut header, 16, &checksum.to_le_bytes())?;
        file.write_all_at(&table, table_at)?;
        file.write_all_at(&header, header_at)?;
    }
    Ok(())
}

/// Makes the last extended boot record of an MBR disk name itself as the next one, so that
/// whoever follows the chain without a limit never ends.
///
/// # Errors
/// Where the disk has no extended partition, or more than 100 logical ones.
pub fn mbr_loop(image: &Path) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(image)?;
    let mut record = [0; 512];
    file.read_exact_at(&mut record, 0)?;
    let entries = record.get(446..510).context("a boot record of 512 bytes")?;
    let extended = entries.chunks(16).find(|entry| matches!(entry.get(4), Some(5 | 0x0f | 0x85)));
    let start = number_at(extended.context("no extended partition")?, 8, 4)?;
    // The second entry of each extended boot record points to the next one, counted from the
    // start of the extended partition; a length of 0 ends the chain.
    let mut own = 0;
    for _ in 0..100 {
        file.read_exact_at(&mut record, (start + own) * SECTOR)?;
        let (next, len) = (number_at(&record, 462 + 8, 4)?, number_at(&record, 462 + 12, 4)?);
        if len != 0 {
            own = next;
            continue;
        }
        let mut entry = [0; 16];
        put(&mut entry, 4, &[5])?;
        put(&mut entry, 8, &u32::try_from(own)?.to_le_bytes())?;
        put(&mut entry, 12, &2048_u32.to_le_bytes())?;
        file.write_all_at(&entry, (start + own) * SECTOR + 462)?;
        return Ok(());
    }
    bail!("the chain of extended boot records has no end")
}

/// A little-endian number of `len` bytes.
fn number_at(bytes: &[u8], at: usize, len: usize) -> Result<u64> {
    let field = bytes.get(at..at + len).context("field outside the structure")?;
    Ok(field.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) -> Result<()> {
    let field = bytes.get_mut(at..at + value.len()).context("field outside the structure")?;
    field.copy_from_slice(value);
    Ok(())
}

/// CRC-32 as GPT uses it (ISO 3309, reflected, polynomial 0xEDB88320).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 }
        })
    })
}

/// A file of pseudo-random bytes, the same every time: evidence that is nothing.
///
/// # Errors
/// Where it can not be written.
pub fn random_bytes(path: &Path, len: u32) -> Result<()> {
    let bytes: Vec<u8> = noise(len).collect();
    fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::{
        disk::{GPT_LINUX, gpt, mbr},
        images::{BTRFS_MIN, Ext, Image, MIB, XFS_MIN},
    };

    fn ext4(folder: &Path, name: &str, size: u64) -> PathBuf {
        let content = tempfile::tempdir().expect("temporary folder");
        fs::create_dir(content.path().join("etc")).expect("mkdir");
        fs::write(content.path().join("etc/motd"), "hello\n").expect("write");
        Image::new(folder, name, size).ext(Ext::Ext4, content.path()).expect("ext4")
    }

    fn features(image: &Path) -> String {
        let output = run(command("dumpe2fs").expect("dumpe2fs").arg("-h").arg(image)).expect("run");
        String::from_utf8_lossy(&output).into_owned()
    }

    #[test]
    fn the_recovery_mark_is_set() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let image = ext4(dir.path(), "a.img", 16 * MIB);
        assert!(!features(&image).contains("needs_recovery"));
        mark_needs_recovery(&image).expect("mark");
        assert!(features(&image).contains("needs_recovery"));
    }

    #[test]
    fn an_image_that_asks_for_a_panic() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let image = ext4(dir.path(), "a.img", 16 * MIB);
        panic_on_error(&image, "/etc").expect("damage");
        assert!(features(&image).contains("Errors behavior:          Panic"));
        let mut e2fsck = command("e2fsck").expect("e2fsck");
        let verdict = run(e2fsck.args(["-f", "-n"]).arg(&image)).expect_err("a damaged folder");
        assert!(format!("{verdict:#}").contains("e2fsck"));
        assert!(panic_on_error(&image, "/no-such-folder").is_err());
    }

    #[test]
    fn a_dirty_copy_holds_the_file_in_its_journal_only() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let (image, copy) = (ext4(dir.path(), "a.img", 16 * MIB), dir.path().join("dirty.img"));
        if !is_root() {
            assert!(dirty_copy(&image, &copy).is_err());
            return;
        }
        dirty_copy(&image, &copy).expect("dirty");
        assert!(features(&copy).contains("needs_recovery"));
        let read = |image: &Path| {
            let mut debugfs = command("debugfs").expect("debugfs");
            let request = format!("cat {DIRTY_FILE}");
            run(debugfs.args(["-R", &request]).arg(image)).expect("debugfs")
        };
        assert_eq!(read(&copy), b"", "not yet in the file system");
        assert_eq!(read(&image), DIRTY_CONTENT.as_bytes(), "unmounted properly");
    }

    #[test]
    fn dirty_copies_of_xfs_and_btrfs_hold_a_log() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let content = tempfile::tempdir().expect("temporary folder");
        let xfs = Image::new(dir.path(), "x.img", XFS_MIN).xfs(content.path()).expect("xfs");
        let btrfs =
            Image::new(dir.path(), "b.img", BTRFS_MIN).btrfs(content.path()).expect("btrfs");
        let copy = dir.path().join("dirty.img");
        if !is_root() {
            assert!(dirty_copy(&xfs, &copy).is_err());
            return;
        }
        dirty_copy(&xfs, &copy).expect("dirty xfs");
        let mut repair = command("xfs_repair").expect("xfs_repair");
        let output = repair.arg("-n").arg(&copy).output().expect("xfs_repair");
        let talk = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(talk.contains("valuable metadata changes in a log"), "{talk}");

        // `log_root` is at offset 96 of the superblock, which is at 64 KiB (btrfs on-disk format).
        let log_root = |image: &Path| {
            let mut field = [0; 8];
            let file = File::open(image).expect("open");
            file.read_exact_at(&mut field, (64 << 10) + 96).expect("read");
            u64::from_le_bytes(field)
        };
        assert_eq!(log_root(&btrfs), 0);
        dirty_copy(&btrfs, &copy).expect("dirty btrfs");
        assert_ne!(log_root(&copy), 0);
    }

    #[test]
    fn truncated_copies_are_short_and_the_same_so_far() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let (image, copy) = (ext4(dir.path(), "a.img", 8 * MIB), dir.path().join("short.img"));
        truncated_copy(&image, &copy, 3_000_001).expect("truncate");
        let (whole, part) = (fs::read(&image).expect("read"), fs::read(&copy).expect("read"));
        assert_eq!(part.len(), 3_000_001);
        assert!(whole.starts_with(&part));
    }

    #[test]
    fn a_moved_gpt_entry_is_well_formed() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let part = ext4(dir.path(), "p.img", 8 * MIB);
        let path = dir.path().join("disk.img");
        gpt(&path, &[(&part, GPT_LINUX)]).expect("gpt");
        gpt_move(&path, 1, 4096, 1 << 40).expect("move");
        let mut sgdisk = command("sgdisk").expect("sgdisk");
        let verdict = run(sgdisk.arg("-v").arg(&path)).expect("sgdisk");
        let verdict = String::from_utf8_lossy(&verdict);
        assert!(!verdict.contains("CRC"), "{verdict}");
        assert!(verdict.contains("too big for the disk"), "{verdict}");
        assert!(gpt_move(&part, 1, 0, 1).is_err(), "no GPT");
    }

    #[test]
    fn the_last_boot_record_names_itself() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let part = ext4(dir.path(), "p.img", 8 * MIB);
        let path = dir.path().join("disk.img");
        let disk = mbr(&path, &[], &[(&part, "83"), (&part, "83")]).expect("mbr");
        mbr_loop(&path).expect("loop");
        let bytes = fs::read(&path).expect("read");
        // One MiB before the second logical partition, and as far from the extended one's start,
        // which is at one MiB itself.
        let at = disk.partitions[1].offset - MIB;
        let field = usize::try_from(at).expect("small") + 462 + 8;
        let next = u32::from_le_bytes(bytes[field..field + 4].try_into().expect("four"));
        assert_eq!(u64::from(next) * SECTOR, at - MIB);
        assert!(mbr_loop(&part).is_err(), "no table");
    }

    #[test]
    fn crc32_of_the_standard_example() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
