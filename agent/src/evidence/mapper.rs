//! Snapshots by the kernel's device mapper (kernel `Documentation/admin-guide/device-mapper/snapshot.rst`).
//!
//! Purpose: a device that shows another, and keeps what is written to it elsewhere. Touches the device
//! mapper's control node. A device made here is marked to go with its last user before it can have any, so
//! that nothing is left behind however the agent ends. Never touches a device that it has not made.

use std::{
    fs::File,
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    sync::atomic::{AtomicU32, Ordering},
};

use super::sys::{self, Loop, MAP_HEAD, MAP_MESSAGE};

// Commands and flags of linux/dm-ioctl.h.
const DM_DEV_CREATE: u8 = 3;
const DM_DEV_REMOVE: u8 = 4;
const DM_DEV_SUSPEND: u8 = 6;
const DM_TABLE_LOAD: u8 = 9;
const DM_TABLE_STATUS: u8 = 12;
const DM_DEFERRED_REMOVE: u32 = 1 << 17;

/// Sectors of 512 bytes that are copied at once. The kernel cuts every read at their borders: 8 KiB read at
/// two thirds of the speed of the device below, 32 KiB at 0.85, and of more a replay, which writes single
/// blocks, would take too much scratch.
const CHUNK: u32 = 64;

/// A snapshot that can be written to.
#[derive(Debug)]
pub(super) struct Snapshot {
    control: File,
    name: String,
    /// `/dev/dm-N`.
    pub path: String,
    /// Open for reading, and held until a mount holds the device itself.
    pub device: Option<File>,
}

impl Snapshot {
    /// Shows `origin`, of so many bytes, and writes to `scratch`.
    pub(super) fn over(origin: &Loop, length: u64, scratch: &Loop) -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let control = File::options().read(true).write(true).open("/dev/mapper/control")?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("cleanroom-{}-{count}", std::process::id());
        let table = format!("{} {} N {CHUNK}", number(&origin.device)?, number(&scratch.device)?);
        let mut message = Message::new(&name);
        message.send(&control, DM_DEV_CREATE)?;
        let minor = message.minor();
        let mut snapshot = Self { control, name, path: format!("/dev/dm-{minor}"), device: None };
        match snapshot.begin(length / 512, &table) {
            Ok(()) => Ok(snapshot),
            Err(error) => {
                // It was made a moment ago and nobody uses it. If it cannot go, nothing else will help.
                drop(Message::new(&snapshot.name).send(&snapshot.control, DM_DEV_REMOVE));
                Err(error)
            }
        }
    }

    fn begin(&mut self, sectors: u64, table: &str) -> io::Result<()> {
        let mut load = Message::new(&self.name);
        load.target("snapshot", sectors, table)?;
        load.send(&self.control, DM_TABLE_LOAD)?;
        // From here on it is in use, and goes with its last user.
        let device = File::open(&self.path)?;
        let mut remove = Message::new(&self.name);
        remove.put(28, DM_DEFERRED_REMOVE);
        remove.send(&self.control, DM_DEV_REMOVE)?;
        // Without the flag to suspend, this resumes: the table becomes the device.
        Message::new(&self.name).send(&self.control, DM_DEV_SUSPEND)?;
        self.device = Some(device);
        Ok(())
    }

    /// What the snapshot says of itself: `16/1024 0`, `Invalid`, `Overflow`.
    pub(super) fn status(&self) -> io::Result<String> {
        let mut message = Message::new(&self.name);
        message.send(&self.control, DM_TABLE_STATUS)?;
        Ok(message.first_status())
    }
}

/// Why a snapshot with this status does not show all that was written; `None` where it does.
pub(super) fn trouble(status: &str) -> Option<String> {
    // The sectors in use and those there are, then those for metadata.
    let sound = status.split_once('/').is_some_and(|(used, _)| used.parse::<u64>().is_ok());
    (!sound).then(|| format!("the snapshot is no longer valid ({status})"))
}

/// `major:minor` of an open device.
fn number(device: &File) -> io::Result<String> {
    let number = device.metadata()?.rdev();
    Ok(format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number)))
}

/// A `struct dm_ioctl` and what follows it.
struct Message(Box<[u8; MAP_MESSAGE]>);

impl Message {
    /// About the device of this name, which is short and our own.
    fn new(name: &str) -> Self {
        let mut message = Self(Box::new([0; MAP_MESSAGE]));
        // Version 4.0.0: every kernel answers the commands of its own and all earlier minor versions.
        message.put(0, 4);
        message.put(16, u32::try_from(MAP_HEAD).unwrap_or_default());
        message.0[48..][..name.len()].copy_from_slice(name.as_bytes());
        message
    }

    fn put(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }

    fn get(&self, at: usize) -> u32 {
        let mut field = [0; 4];
        if let Some(bytes) = self.0.get(at..at.saturating_add(4)) {
            field.copy_from_slice(bytes);
        }
        u32::from_ne_bytes(field)
    }

    /// Adds the one target of a table: a `struct dm_target_spec` and its parameters.
    fn target(&mut self, kind: &str, sectors: u64, parameters: &str) -> io::Result<()> {
        const PARAMETERS: usize = MAP_HEAD + 40;
        if PARAMETERS + parameters.len() >= MAP_MESSAGE || kind.len() >= 16 {
            return Err(io::Error::other("the table is too long"));
        }
        self.put(20, 1);
        self.0[MAP_HEAD + 8..][..8].copy_from_slice(&sectors.to_ne_bytes());
        self.0[MAP_HEAD + 24..][..kind.len()].copy_from_slice(kind.as_bytes());
        self.0[PARAMETERS..][..parameters.len()].copy_from_slice(parameters.as_bytes());
        Ok(())
    }

    fn send(&mut self, control: &File, command: u8) -> io::Result<()> {
        sys::map_devices(control.as_fd(), command, &mut self.0)
    }

    /// The minor number of the device in an answer, which the kernel packs around the major one
    /// (`huge_encode_dev` of linux/kdev_t.h).
    fn minor(&self) -> u32 {
        let device = self.get(40);
        (device & 0xff) | ((device >> 12) & 0xf_ff00)
    }

    /// What the first target of an answer says.
    fn first_status(&self) -> String {
        let start = self.get(16) as usize;
        let text = self.0.get(start.saturating_add(40)..).unwrap_or_default();
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        if self.get(20) == 0 { String::new() } else { String::from_utf8_lossy(text).into_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_that_is_full_or_unknown_is_in_trouble() {
        for sound in ["0/131072 0", "16/1024 0", "1024/1024 8"] {
            assert_eq!(trouble(sound), None, "{sound}");
        }
        for lost in ["Invalid", "Overflow", "Unknown", "Merge failed", "", "x/1 0"] {
            assert!(trouble(lost).is_some_and(|why| why.contains(lost)), "{lost}");
        }
    }

    #[test]
    fn a_table_lies_where_the_kernel_looks_for_it() {
        let mut message = Message::new("cleanroom-1-0");
        message.target("snapshot", 0x1122_3344_5566, "7:0 7:1 N 64").unwrap();
        assert_eq!((message.get(0), message.get(16), message.get(20)), (4, 312, 1));
        assert_eq!(&message.0[48..62], b"cleanroom-1-0\0");
        assert_eq!(message.0[312..320], [0; 8], "first sector");
        assert_eq!(message.0[320..328], 0x1122_3344_5566_u64.to_ne_bytes());
        assert_eq!(&message.0[336..345], b"snapshot\0");
        assert_eq!(&message.0[352..365], b"7:0 7:1 N 64\0");
        assert_eq!(message.first_status(), "7:0 7:1 N 64");
        assert!(message.target("snapshot", 1, &"x".repeat(MAP_MESSAGE)).is_err());
    }

    #[test]
    fn minor_numbers_are_unpacked() {
        let mut message = Message::new("x");
        message.put(40, 0x0010_fd03);
        assert_eq!(message.minor(), 0x103);
    }
}
