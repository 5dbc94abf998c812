use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
};

use super::*;
use crate::rules::source::digest;

/// A folder that may hold a cache.
fn place() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/cleanroom");
    (folder, path)
}

fn key_number(number: u8) -> Sha256 {
    digest(&[number])
}

/// The packs of a cache folder.
fn packs(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|e| e == "pack")).collect()
}

#[test]
fn the_default_place_follows_the_environment() {
    let dir = |xdg: Option<&str>, home: Option<&str>| {
        default_dir(xdg.map(Into::into), home.map(Into::into))
    };
    assert_eq!(dir(Some("/x"), Some("/h")), Some("/x/cleanroom-agent".into()));
    assert_eq!(dir(Some("relative"), Some("/h")), Some("/h/.cache/cleanroom-agent".into()));
    assert_eq!(dir(Some(""), Some("/h")), Some("/h/.cache/cleanroom-agent".into()));
    assert_eq!(dir(None, None), None);
}

#[test]
fn a_pack_is_found_again_by_its_key_only() {
    let (_folder, path) = place();
    let cache = Cache::open(&path).unwrap();
    assert_eq!(cache.get(&key_number(1)), None);
    cache.put(&key_number(1), b"pack").unwrap();
    let again = Cache::open(&path).unwrap();
    assert_eq!(again.get(&key_number(1)).as_deref(), Some(&b"pack"[..]));
    assert_eq!(again.get(&key_number(2)), None);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    for file in fs::read_dir(&path).unwrap() {
        assert_eq!(file.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn a_changed_or_renamed_file_is_a_miss_and_is_replaced() {
    let (_folder, path) = place();
    let cache = Cache::open(&path).unwrap();
    cache.put(&key_number(1), b"pack").unwrap();
    let file = path.join(name_of(&key_number(1)));
    let good = fs::read(&file).unwrap();
    for at in [0, 31, 32, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&file, bad).unwrap();
        assert_eq!(cache.get(&key_number(1)), None, "byte {at}");
    }
    for length in [0, 31, 32, good.len() - 1] {
        fs::write(&file, &good[..length]).unwrap();
        assert_eq!(cache.get(&key_number(1)), None, "{length} bytes");
    }
    cache.put(&key_number(1), b"pack").unwrap();
    assert!(cache.get(&key_number(1)).is_some());
    fs::rename(&file, path.join(name_of(&key_number(2)))).unwrap();
    assert_eq!(cache.get(&key_number(2)), None);
}

#[test]
fn another_key_file_makes_everything_a_miss() {
    let (_folder, path) = place();
    Cache::open(&path).unwrap().put(&key_number(1), b"pack").unwrap();
    fs::remove_file(path.join(KEY_FILE)).unwrap();
    assert_eq!(Cache::open(&path).unwrap().get(&key_number(1)), None);
}

#[test]
fn a_folder_that_others_could_use_is_refused_with_a_reason() {
    let (folder, path) = place();
    drop(Cache::open(&path).unwrap());
    for mode in [0o750, 0o705, 0o770] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        assert!(Cache::open(&path).unwrap_err().contains("chmod 700"), "{mode:o}");
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    let link = folder.path().join("link");
    symlink(&path, &link).unwrap();
    assert!(Cache::open(&link).is_err());
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(Cache::open(&file).is_err());
    assert!(Cache::open(&file.join("below")).is_err());
}

#[test]
fn a_folder_of_another_user_is_refused() {
    let (_folder, path) = place();
    drop(Cache::open(&path).unwrap());
    // Only root can give a folder away.
    if std::os::unix::fs::chown(&path, Some(12_345), None).is_ok() {
        assert!(Cache::open(&path).unwrap_err().contains("another user"));
    } else {
        // Root's own folder is the other case that everyone can see.
        assert!(Cache::open(Path::new("/root")).is_err());
    }
}

#[test]
fn a_key_file_that_is_not_private_or_not_whole_is_refused() {
    let (_folder, path) = place();
    drop(Cache::open(&path).unwrap());
    let key = path.join(KEY_FILE);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(Cache::open(&path).unwrap_err().contains("private"));
    fs::remove_file(&key).unwrap();
    fs::write(&key, "short").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(Cache::open(&path).is_err());
    fs::remove_file(&key).unwrap();
    symlink("/etc/hostname", &key).unwrap();
    assert!(Cache::open(&path).is_err());
}

#[test]
fn only_the_newest_packs_are_kept() {
    let (_folder, path) = place();
    let cache = Cache::open(&path).unwrap();
    for number in 0..12 {
        cache.put(&key_number(number), &[number]).unwrap();
        let file = fs::File::open(path.join(name_of(&key_number(number)))).unwrap();
        let written =
            std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000 + u64::from(number));
        file.set_modified(written).unwrap();
    }
    fs::write(path.join("mine.txt"), "not the cache's").unwrap();
    cache.put(&key_number(12), b"last").unwrap();
    assert_eq!(packs(&path).len(), KEEP);
    assert!(cache.get(&key_number(12)).is_some() && cache.get(&key_number(11)).is_some());
    assert!(cache.get(&key_number(0)).is_none());
    assert!(path.join("mine.txt").exists());
}

#[test]
fn the_key_depends_on_everything_that_is_compiled() {
    use crate::rules::source::{Include, Source, Text};
    let text = |path: &str, body: &[u8]| Text {
        path: path.to_owned(),
        bytes: body.to_vec(),
        sha256: digest(body),
        includes: Vec::new(),
    };
    let set = |namespace: &str, text: Text| SourceSet {
        sources: vec![Source { namespace: namespace.to_owned(), text }],
        diagnostics: Vec::new(),
    };
    let mut including = text("p", b"x");
    including.includes.push(Include { span: 0..1, text: Some(text("q", b"y")) });
    let mut other = including.clone();
    other.includes[0].text = Some(text("q", b"z"));
    let keys = [
        key(&set("n", text("p", b"x"))),
        key(&set("n", text("p", b"y"))),
        key(&set("m", text("p", b"x"))),
        key(&set("n", text("q", b"x"))),
        key(&set("n", including)),
        key(&set("n", other)),
    ];
    let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
    assert_eq!(distinct.len(), keys.len());
    assert_eq!(key(&set("n", text("p", b"x"))), keys[0]);
}

#[test]
fn the_processor_is_described_by_vendor_model_and_features() {
    let text = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 85\nflags\t\t: fpu avx2\n";
    let one = describe_cpu("x86_64", text);
    assert!(one.starts_with("x86_64 GenuineIntel 6 85 "), "{one}");
    assert_ne!(one, describe_cpu("x86_64", &text.replace("avx2", "avx")));
    assert_ne!(one, describe_cpu("aarch64", text));
    assert_eq!(cpu_identity(), cpu_identity());
}
