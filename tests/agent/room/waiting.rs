//! Those who wait for the room: its stack, and the task of a state machine. No emulator has both; what they are asked is
//! written down.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use serde_json::Value;

use super::{
    account::Account,
    machine::{Machine, digest, metadata, order, put_order},
    orders::user_data,
};

const SCAN: &str = "20260102T030405Z-0123abcd";
const TOKEN: &str = "t0ken-of-the-task";

/// What a service was asked: the header that names the operation, and the body.
type Asked = Arc<Mutex<Vec<(String, String)>>>;

/// A service that says yes to everything, its address, and what it was asked.
fn yes_man() -> (String, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&asked);
    // Ends with this process.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if let Some(question) = hear(stream) {
                heard.lock().unwrap().push(question);
            }
        }
    });
    (address, asked)
}

fn hear(mut stream: TcpStream) -> Option<(String, String)> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let header = |name: &str| {
                head.lines().find_map(|line| {
                    let (key, value) = line.split_once(": ")?;
                    key.eq_ignore_ascii_case(name).then(|| value.to_owned())
                })
            };
            let length = header("content-length").and_then(|length| length.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                let target = header("x-amz-target").unwrap_or_default();
                let answer = if target.is_empty() { "<x></x>" } else { "{}" };
                let length = answer.len();
                let head =
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close");
                write!(stream, "{head}\r\n\r\n{answer}").ok()?;
                return Some((target, body.to_owned()));
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(read) => bytes.extend_from_slice(&buffer[..read]),
        }
    }
}

#[test]
fn the_stack_and_the_task_are_told_once() {
    let account = Account::new();
    let mut machine = Machine::new(&account);
    let mut order = order(&account, SCAN);
    order.task_token = Some(TOKEN.to_owned());
    let (_, sha256) = put_order(&account, &order);
    let document = user_data(&account, &order, sha256);
    machine.set("AWS_EC2_METADATA_SERVICE_ENDPOINT", &metadata(document));
    let (stack, signals) = yes_man();
    let (states, tasks) = yes_man();
    machine.set("AWS_ENDPOINT_URL_CLOUDFORMATION", &stack);
    machine.set("AWS_ENDPOINT_URL_SFN", &states);
    let output = machine.expect(0, &["--idle", "1ms"]);
    machine.published(&account, &order, &output);

    let signals = std::mem::take(&mut *signals.lock().unwrap());
    let told: Vec<_> = signals.iter().map(|(_, body)| body.as_str()).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    for (body, resource) in told.iter().zip(["Room", "Evidence"]) {
        for part in [
            "Action=SignalResource",
            "StackName=cleanroom-case",
            &format!("LogicalResourceId={resource}"),
            "UniqueId=i-0aaaaaaaaaaaaaaaa",
            "Status=SUCCESS",
        ] {
            assert!(body.contains(part), "{part}: {body}");
        }
    }
    let told = std::mem::take(&mut *tasks.lock().unwrap());
    let of = |operation: &str| {
        let all =
            told.iter().filter(|(target, _)| target == &format!("AWSStepFunctions.{operation}"));
        all.map(|(_, body)| serde_json::from_str::<Value>(body).unwrap()).collect::<Vec<_>>()
    };
    assert!(of("SendTaskHeartbeat").iter().all(|beat| beat["taskToken"] == TOKEN));
    assert!(!of("SendTaskHeartbeat").is_empty());
    let results = of("SendTaskSuccess");
    assert_eq!(results.len(), 1, "{results:?}");
    assert_eq!(results[0]["taskToken"], TOKEN);
    let result: Value = serde_json::from_str(results[0]["output"].as_str().unwrap()).unwrap();
    assert_eq!(result["scan"], SCAN);
    let prefix = result["bundle"]["prefix"].as_str().unwrap();
    let sums = digest(&account.get(&format!("{prefix}SHA256SUMS")));
    assert_eq!(result["bundle"]["sums_sha256"], sums.to_string());

    machine.expect(0, &["--idle", "1ms"]);
    assert_eq!(*tasks.lock().unwrap(), [], "the task has ended");
}

#[test]
fn a_room_that_can_not_work_tells_its_stack_at_once() {
    let account = Account::new();
    let mut machine = Machine::new(&account);
    let order = order(&account, SCAN);
    put_order(&account, &order);
    let document = user_data(&account, &order, digest(b"another"));
    machine.set("AWS_EC2_METADATA_SERVICE_ENDPOINT", &metadata(document));
    let (stack, signals) = yes_man();
    machine.set("AWS_ENDPOINT_URL_CLOUDFORMATION", &stack);
    machine.expect(78, &[]);
    let signals = signals.lock().unwrap();
    assert_eq!(signals.len(), 1);
    assert!(signals[0].1.contains("LogicalResourceId=Room"), "{signals:?}");
    assert!(signals[0].1.contains("Status=FAILURE"), "{signals:?}");
}
