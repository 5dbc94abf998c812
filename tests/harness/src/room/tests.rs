//! The room boots from what the emulated account says, and sees nothing else.

use std::fs::File;

use super::*;
use crate::emulators::{Moto, http::ec2};

/// What a room runs in these tests: tells what it sees, until a disk has come, and ends with a status of its own.
const USER_DATA: &str = r##"#!/bin/sh
#cleanroom-room {}
echo "seen: instance $(curl -sS http://169.254.169.254/latest/meta-data/instance-id)"
for address in 169.254.169.1:80 169.254.169.1:$PORT 169.254.169.253:$PORT 169.254.169.3:53 10.0.2.2:80 127.0.0.1:$PORT 192.0.2.1:443; do
    nc -w 2 ${address%:*} ${address#*:} </dev/null >/dev/null 2>&1 && echo "seen: $address answers"
done
nc -w 2 169.254.169.253 80 </dev/null >/dev/null 2>&1 && echo "seen: the emulator answers"
echo "seen: $(ls /sys/class/nvme | wc -l) disk, root on $(cat /sys/class/nvme/nvme0/serial)"
aws s3api get-object --region us-east-1 --bucket nowhere --key nothing /run/nothing 2>/dev/null || echo "seen: no object"
while [ ! -e /dev/nvme1n1 ]; do usleep 100000; done
echo "seen: $(cat /sys/class/nvme/nvme1/serial) with $(head -c 8 /dev/nvme1n1)"
while ip link show eth0 | grep -q LOWER_UP; do usleep 100000; done
echo "seen: the cable is out"
exit 7
"##;

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[test]
fn a_room_boots_from_its_user_data_and_reaches_the_emulator_alone() {
    let moto = Moto::start().expect("moto");
    let port: u16 = moto.url().rsplit(':').next().expect("a port").parse().expect("a number");
    let script = USER_DATA.replace("$PORT", &port.to_string());
    let encoded = base64(script.as_bytes()).replace('+', "%2B").replace('=', "%3D");
    let more = format!("&ImageId=ami-12c6146b&MinCount=1&MaxCount=1&UserData={encoded}");
    let (status, body) = ec2(port, "RunInstances", &more).expect("run");
    assert_eq!(status, 200, "{body}");
    let id = body.split("<instanceId>").nth(1).and_then(|rest| rest.split('<').next());

    let start = Start { port, proxy: None, programs: &[], beside: SHELL, memory_mib: 512, cpu: 2 };
    let mut room = Machine::boot(&start).expect("boot");
    let patience = Duration::from_secs(120);
    let says = |text: String| move |room: &mut Machine| Ok(room.console().contains(&text));
    room.until("a look at the object", patience, says("seen: no object".into())).expect("boot");
    room.types("echo heard: $((6 * 7))").expect("type");
    room.until("an answer", patience, says("heard: 42".into())).expect("a shell");

    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("evidence.img");
    File::create(&path).and_then(|file| file.set_len(MIB)).expect("create");
    let mut bytes = fs::read(&path).expect("read");
    bytes[..8].copy_from_slice(b"evidence");
    fs::write(&path, bytes).expect("write");
    let disk = Disk { path, serial: "vol0123456789abcdef0".into(), readonly: true };
    room.attach(&disk).expect("attach");
    room.until("the disk", patience, says("with evidence".into())).expect("attached");
    room.network(false).expect("network");
    assert_eq!(room.wait(patience).expect("off"), Ended::Off);

    let console = room.console();
    // The shell may have written its prompt before it.
    let said = |line: &'_ str| line.split_once("seen: ").map(|(_, said)| said.trim().to_owned());
    let seen: Vec<_> = console.lines().filter_map(said).collect();
    assert_eq!(
        seen,
        [
            &format!("instance {}", id.expect("an id")),
            "the emulator answers",
            &format!("1 disk, root on {ROOT_SERIAL}"),
            "no object",
            "vol0123456789abcdef0 with evidence",
            "the cable is out",
        ],
        "{console}"
    );
    assert!(console.contains("CLEANROOM-EXIT:7"), "{console}");
}
