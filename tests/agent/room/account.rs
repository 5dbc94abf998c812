//! The account that a room is in: a bucket, a topic and a queue that hears it, each test's own in one emulator.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use cleanroom_contract::{CaseId, RoomEvent, ScanId, events_prefix};
use cleanroom_harness::emulators::{ACCESS_KEY, Moto, REGION, SECRET_KEY, python};
use serde_json::Value;

use crate::support::{Scan, read};

/// One emulator for all tests of the room: each has names of its own in it.
static MOTO: OnceLock<Moto> = OnceLock::new();

/// A number for each account.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A bucket, a topic, a queue.
#[derive(Debug)]
pub(super) struct Account {
    url: String,
    pub(super) bucket: String,
    /// The topic's ARN.
    pub(super) topic: String,
    queue: String,
}

impl Account {
    /// Makes them.
    pub(super) fn new() -> Self {
        let url = MOTO.get_or_init(|| Moto::start().expect("moto starts")).url();
        let bucket = format!("evidence-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let code = "
bucket = sys.argv[2]
s3, sns, sqs = client('s3'), client('sns'), client('sqs')
s3.create_bucket(Bucket=bucket)
s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={'Status': 'Enabled'})
topic = sns.create_topic(Name=bucket)['TopicArn']
queue = sqs.create_queue(QueueName=bucket)['QueueUrl']
arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=['QueueArn'])['Attributes']['QueueArn']
sns.subscribe(TopicArn=topic, Protocol='sqs', Endpoint=arn)
print(json.dumps([topic, queue]))
";
        let made = boto(&url, code, &[&bucket]);
        let text = |at: usize| made[at].as_str().expect("a name").to_owned();
        Self { topic: text(0), queue: text(1), url, bucket }
    }

    /// The address of the emulator.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Creates an object.
    pub(super) fn put(&self, key: &str, bytes: &[u8]) {
        let (status, _) = self.request("PUT", key, bytes);
        assert_eq!(status, 200, "{key}");
    }

    /// An object's bytes.
    pub(super) fn get(&self, key: &str) -> Vec<u8> {
        let (status, bytes) = self.request("GET", key, b"");
        assert_eq!(status, 200, "{key}");
        bytes
    }

    /// The keys of the bucket, and of how many versions each is.
    pub(super) fn versions(&self) -> BTreeMap<String, usize> {
        let (status, xml) = self.request("GET", "?versions", b"");
        assert_eq!(status, 200);
        let xml = String::from_utf8(xml).expect("XML");
        let mut keys = BTreeMap::new();
        for part in xml.split("<Key>").skip(1) {
            let key = part.split_once("</Key>").expect("an element").0;
            *keys.entry(key.to_owned()).or_insert(0) += 1;
        }
        keys
    }

    /// How many uploads in parts are neither completed nor given up.
    pub(super) fn uploads(&self) -> usize {
        let (status, xml) = self.request("GET", "?uploads", b"");
        assert_eq!(status, 200);
        String::from_utf8(xml).expect("XML").matches("<UploadId>").count()
    }

    /// Nothing was written twice or deleted.
    pub(super) fn assert_written_once(&self) {
        let twice: Vec<_> = self.versions().into_iter().filter(|(_, n)| *n != 1).collect();
        assert_eq!(twice, [], "written twice");
    }

    /// The events of a scan, in order, which have numbers without gaps.
    pub(super) fn events(&self, case: &CaseId, scan: &ScanId) -> Vec<RoomEvent> {
        let prefix = events_prefix(case, scan);
        let keys = self.versions().into_keys().filter(|key| key.starts_with(&prefix));
        let events: Vec<RoomEvent> =
            keys.map(|key| serde_json::from_slice(&self.get(&key)).expect("an event")).collect();
        for (number, event) in (1..).zip(&events) {
            assert_eq!((event.seq, &event.case, &event.scan), (number, case, scan));
        }
        events
    }

    /// Downloads the bundle below a prefix and reads it: its sums fit, and it is whole.
    pub(super) fn bundle(&self, prefix: &str, work: &Path, output: &Output) -> Scan {
        let folder = self.download(prefix, work);
        read(&folder, output)
    }

    /// Downloads what lies below a prefix.
    pub(super) fn download(&self, prefix: &str, work: &Path) -> PathBuf {
        let folder = tempfile::Builder::new().prefix("published-").tempdir_in(work).unwrap().keep();
        for key in self.versions().into_keys() {
            if let Some(name) = key.strip_prefix(prefix) {
                fs::write(folder.join(name), self.get(&key)).unwrap();
            }
        }
        folder
    }

    /// The messages that the topic sent since the last time: their JSON, and their attributes.
    pub(super) fn messages(&self) -> Vec<(Value, Value)> {
        let code = "
sqs, found = client('sqs'), []
while True:
    some = sqs.receive_message(QueueUrl=sys.argv[2], MaxNumberOfMessages=10).get('Messages', [])
    if not some:
        break
    for message in some:
        sqs.delete_message(QueueUrl=sys.argv[2], ReceiptHandle=message['ReceiptHandle'])
        found.append(json.loads(message['Body']))
print(json.dumps(found))
";
        let found = boto(&self.url, code, &[&self.queue]);
        let found = found.as_array().expect("messages").clone();
        let read = |message: Value| {
            let text = message["Message"].as_str().expect("a text").to_owned();
            let json = serde_json::from_str(&text).expect("JSON for programs");
            (json, message["MessageAttributes"].clone())
        };
        found.into_iter().map(read).collect()
    }

    /// A request to the bucket, signed by nobody: the emulator takes any signature.
    fn request(&self, method: &str, key: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let host = self.url.strip_prefix("http://").expect("an address");
        let head = format!(
            "{method} /{}/{key} HTTP/1.0\r\nHost: {host}\r\nContent-Length: {}\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20260101/{REGION}/s3/aws4_request, \
             SignedHeaders=host, Signature=0\r\n\r\n",
            self.bucket,
            body.len()
        );
        let mut stream = TcpStream::connect(host).expect("the emulator listens");
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("an answer");
        let head = String::from_utf8_lossy(&answer[..end]);
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        (status, answer[end + 4..].to_vec())
    }
}

/// Runs a few lines of Python on AWS's SDK, with `client(service)`, `json` and `sys`; what they print.
fn boto(endpoint: &str, code: &str, arguments: &[&str]) -> Value {
    const PRELUDE: &str = "
import boto3, json, sys
assert sys.argv[1].startswith('http://127.0.0.1:')
def client(service):
    return boto3.client(service, endpoint_url=sys.argv[1])
";
    let mut command = Command::new(python().expect("the emulators' Python"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    command.env("AWS_DEFAULT_REGION", REGION).env("AWS_EC2_METADATA_DISABLED", "true");
    command.args(["-B", "-c", &format!("{PRELUDE}{code}"), endpoint]).args(arguments);
    let output = command.output().expect("Python runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{code}\n{stderr}");
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}
