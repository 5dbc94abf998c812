//! Large files, in parts: whole, once, and from where an interrupted one stopped.

use std::{fs::File, io::Write as _};

use cleanroom_agent_aws::{Aws, Put, Source, Store, UploadError};
use cleanroom_contract::Sha256;
use cleanroom_harness::emulators::{ACCESS_KEY, Fault, Injection, Microburst, REGION, SECRET_KEY};

use super::{account::Account, machine::digest};

/// Four parts, and a bit.
const SIZE: usize = (32 << 20) + 1;

/// Bytes that are the same each time, and no two blocks alike.
fn bytes() -> Vec<u8> {
    (0..SIZE as u64 / 8 + 1).flat_map(|n| (n * 0x9E37_79B9).to_le_bytes()).take(SIZE).collect()
}

fn file(bytes: &[u8]) -> (File, Sha256) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    (file, digest(bytes))
}

/// A bucket at this address, by the agent's own adapter.
fn store(url: &str, bucket: &str) -> Store {
    Aws::emulated(url, REGION, (ACCESS_KEY, SECRET_KEY)).store(bucket)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn a_file_in_parts_is_whole_and_written_once() {
    let account = Account::new();
    let (runtime, store) = (runtime(), store(account.url(), &account.bucket));
    let content = bytes();
    let (file, sha256) = file(&content);
    let source = Source { key: "large", file: &file, size: SIZE as u64, sha256 };
    let mut id = None;
    let put = runtime.block_on(store.upload(&source, None, &mut |new| id = Some(new.to_owned())));
    assert_eq!(put.unwrap(), Put::Created);
    assert!(account.get("large") == content, "every byte");
    // Again from the beginning, and again with the upload that was completed.
    for begun in [None, id.as_deref()] {
        let put = runtime.block_on(store.upload(&source, begun, &mut |_| {}));
        assert_eq!(put.unwrap(), Put::Exists, "{begun:?}");
    }
    let (other, sha256) = self::file(&vec![0; SIZE]);
    let other = Source { file: &other, sha256, ..source };
    let put = runtime.block_on(store.upload(&other, None, &mut |_| {}));
    assert!(matches!(put, Err(UploadError::Taken { .. })), "{put:?}");
    account.assert_written_once();
}

#[test]
fn an_interrupted_upload_goes_on() {
    let account = Account::new();
    let proxy = Microburst::start(account.url(), 7).expect("microburst starts");
    let (runtime, store) = (runtime(), store(&proxy.url(), &account.bucket));
    let content = bytes();
    let (file, sha256) = file(&content);
    let source = Source { key: "large", file: &file, size: SIZE as u64, sha256 };
    let denied = || Injection::Error { code: "AccessDenied".to_owned(), status: Some(403) };
    // The proxy takes a part for a whole object.
    proxy.set(&[Fault::new("s3", 0.3, denied()).on("PutObject")]).expect("faults are set");
    let mut id = None;
    let put = runtime.block_on(store.upload(&source, None, &mut |new| id = Some(new.to_owned())));
    assert!(matches!(put, Err(UploadError::Cloud(_))), "{put:?}: {:?}", proxy.fired());
    let id = id.expect("an upload was begun");
    assert!(account.versions().is_empty(), "half a file is no object");

    proxy.set(&[]).expect("faults are set");
    assert_eq!(account.uploads(), 1);
    let put = runtime.block_on(store.upload(&source, Some(&id), &mut |_| {}));
    assert_eq!(put.unwrap(), Put::Created);
    assert!(account.get("large") == content, "every byte");
    assert_eq!(account.uploads(), 0, "what was begun was gone on with, and nothing begun anew");
    account.assert_written_once();
}
