//! Large files, in parts: whole, once, and from where an interrupted one stopped.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use cleanroom_agent_aws::{Aws, Put, Source, Store, UploadError};
use cleanroom_contract::Sha256;
use cleanroom_harness::emulators::{ACCESS_KEY, Fault, Injection, Microburst, REGION, SECRET_KEY};

use super::{
    account::Account,
    machine::{Machine, digest, order},
};

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

/// What was asked over one connection.
type Asked = Arc<Mutex<Vec<u8>>>;

/// Passes everything on to an emulator, and keeps what was asked, a connection each. Its address.
fn relay(upstream: &str) -> (String, Arc<Mutex<Vec<Asked>>>) {
    let upstream = upstream.strip_prefix("http://").unwrap().to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let connections = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&connections);
    // Ends with this process, as the threads below end with their connections.
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut server = TcpStream::connect(&upstream).unwrap();
            let (mut answers, mut back) =
                (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || {
                let _gone = std::io::copy(&mut answers, &mut back);
                let _gone = back.shutdown(Shutdown::Both);
            });
            let asked = Asked::default();
            kept.lock().unwrap().push(Arc::clone(&asked));
            std::thread::spawn(move || {
                let mut buffer = vec![0; 64 << 10];
                while let Ok(read @ 1..) = client.read(&mut buffer) {
                    asked.lock().unwrap().extend_from_slice(&buffer[..read]);
                    if server.write_all(&buffer[..read]).is_err() {
                        break;
                    }
                }
                let _gone = server.shutdown(Shutdown::Both);
            });
        }
    });
    (address, connections)
}

/// The heads of the requests that write: the first line, and whether only what is not there may be written.
fn writes(connections: &Mutex<Vec<Asked>>) -> Vec<(String, bool)> {
    let mut writes = Vec::new();
    for asked in connections.lock().unwrap().iter() {
        let text = String::from_utf8_lossy(&asked.lock().unwrap()).into_owned();
        for (at, version) in text.match_indices(" HTTP/1.1\r\n") {
            let line = &text[..at];
            let method = line.rfind("PUT /").max(line.rfind("POST /"));
            let other = line.rfind("GET /").max(line.rfind("HEAD /"));
            if let Some(start) = method.filter(|_| method > other) {
                let head = text[at + version.len()..].split("\r\n\r\n").next().unwrap();
                let head = head.to_ascii_lowercase();
                let condition = head.lines().any(|header| header == "if-none-match: *");
                writes.push((line[start..].to_owned(), condition));
            }
        }
    }
    writes
}

/// Whether a request makes an object: parts, and beginning to send them, make none.
fn makes_an_object(line: &str) -> bool {
    !line.contains("partNumber=") && !line.contains("?uploads")
}

#[test]
fn nothing_is_written_but_where_nothing_is() {
    let account = Account::new();
    let (url, connections) = relay(account.url());
    let (runtime, store) = (runtime(), store(&url, &account.bucket));
    let content = bytes();
    let (file, sha256) = file(&content);
    let source = Source { key: "large", file: &file, size: SIZE as u64, sha256 };
    let put = runtime.block_on(store.upload(&source, None, &mut |_| {}));
    assert_eq!(put.unwrap(), Put::Created);
    let mut machine = Machine::new(&account);
    machine.set("AWS_ENDPOINT_URL_S3", &url);
    let order = order(&account, "20260102T030405Z-0123abcd");
    let output = machine.expect(0, &["--work-order", &machine.order_file(&order)]);
    machine.published(&account, &order, &output);

    let writes = writes(&connections);
    let made: Vec<_> = writes.iter().filter(|(line, _)| makes_an_object(line)).collect();
    assert!(made.iter().all(|(_, condition)| *condition), "{made:#?}");
    let completed = made.iter().filter(|(line, _)| line.starts_with("POST /")).count();
    assert_eq!(completed, 1, "the large file: {writes:#?}");
    assert_eq!(made.len(), account.versions().len(), "every object was seen: {made:#?}");
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
