//! The disks of this machine, and which of them are evidence.
//!
//! Purpose: find each volume of a work order by the serial number that EBS gives its NVMe disks (`vol0123…` for `vol-0123…`;
//! EBS user guide, "Map Amazon EBS volumes to NVMe device names"), or by its Xen name where there is no NVMe, and the disks
//! behind the root file system. Touches sysfs and `/proc/self/mountinfo`, for reading. Never opens a disk, and never goes by
//! a device's name where there is a serial number.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use cleanroom_contract::{VolumeId, printable};

/// Blocks that sysfs counts in, whatever a device's own are.
const SECTOR: u64 = 512;
/// How deep devices may lie on devices.
const DEPTH: u32 = 16;
/// The disks of the machine itself, which EC2 gives and takes with it.
const INSTANCE_STORE: &str = "Instance Storage";

/// A whole disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Disk {
    /// As below `/sys/block` and `/dev`.
    pub(super) name: String,
    /// Printable; Xen's disks have none.
    pub(super) serial: Option<String>,
    /// Printable.
    model: String,
    /// Its size in bytes.
    bytes: u64,
}

/// A volume that a work order names.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// The volume of the instance, which the evidence is named after.
    pub(super) source: VolumeId,
    /// The room's copy.
    pub(super) copy: Option<VolumeId>,
    /// Its size in GiB.
    pub(super) gib: u32,
    /// Its place in the order, from 0.
    pub(super) place: usize,
}

/// The disks of the kinds that EC2 attaches, by name.
pub(super) fn list(sys: &Path) -> io::Result<Vec<Disk>> {
    let mut disks = Vec::new();
    for entry in fs::read_dir(sys.join("block"))? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = entry.path();
        // A path of a disk with several has no device of its own.
        if !(name.starts_with("nvme") || name.starts_with("xvd")) || !path.join("dev").exists() {
            continue;
        }
        let text = |file: &str| {
            let text = fs::read_to_string(path.join(file)).unwrap_or_default();
            Some(printable(text.trim())).filter(|text| !text.is_empty())
        };
        disks.push(Disk {
            serial: text("device/serial"),
            model: text("device/model").unwrap_or_default(),
            bytes: text("size").and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * SECTOR,
            name,
        });
    }
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(disks)
}

/// A volume's serial number as NVMe shows it.
fn serial_of(volume: &VolumeId) -> String {
    volume.as_str().replacen('-', "", 1)
}

impl Wanted {
    /// The disk that is this volume.
    pub(super) fn find<'d>(&self, disks: &'d [Disk]) -> Option<&'d Disk> {
        disks.iter().find(|disk| self.is(disk))
    }

    /// Whether a disk that is not there yet could be known as this volume: NVMe shows no more than the copy's id, and under
    /// Xen it is the place that counts.
    pub(super) fn may_come(&self, disks: &[Disk]) -> bool {
        self.copy.is_some() || disks.iter().all(|disk| disk.serial.is_none())
    }

    /// Whether a disk is the room's copy of this volume.
    fn is(&self, disk: &Disk) -> bool {
        match &disk.serial {
            Some(serial) => self.copy.as_ref().is_some_and(|copy| serial_of(copy) == *serial),
            // Xen shows no volume's id: its place among the room's devices is what is left, and its size must fit.
            None => {
                xen_name(self.place).is_some_and(|name| name == disk.name)
                    && disk.bytes == u64::from(self.gib) << 30
            }
        }
    }

    /// Whether a disk is this volume or its copy, as far as can be told.
    fn is_evidence(&self, disk: &Disk) -> bool {
        let source = disk.serial.as_ref().is_some_and(|serial| serial_of(&self.source) == *serial);
        source || self.is(disk)
    }
}

/// The name of the volume at this place of the order under Xen: the room's template attaches them as `/dev/sdb` and on.
fn xen_name(place: usize) -> Option<String> {
    let letter = ('b'..='y').nth(place)?;
    Some(format!("xvd{letter}"))
}

/// The serial numbers, or names where they have none, of disks that nobody expected: neither evidence, nor behind the
/// root file system, nor the machine's own.
pub(super) fn unexpected(
    disks: &[Disk],
    wanted: &[Wanted],
    root: &BTreeSet<String>,
) -> Vec<String> {
    let known = |disk: &&Disk| {
        root.contains(&disk.name)
            || disk.model.contains(INSTANCE_STORE)
            || wanted.iter().any(|wanted| wanted.is(disk))
    };
    let others = disks.iter().filter(|disk| !known(disk));
    others.map(|disk| disk.serial.clone().unwrap_or_else(|| disk.name.clone())).collect()
}

/// The evidence that the root file system lies on, where it does.
pub(super) fn evidence_at_root<'w>(
    disks: &[Disk],
    wanted: &'w [Wanted],
    root: &BTreeSet<String>,
) -> Option<(&'w Wanted, String)> {
    let at_root = disks.iter().filter(|disk| root.contains(&disk.name));
    at_root
        .flat_map(|disk| wanted.iter().map(move |wanted| (wanted, disk)))
        .find(|(wanted, disk)| wanted.is_evidence(disk))
        .map(|(wanted, disk)| (wanted, disk.name.clone()))
}

/// The names of the disks behind the file system at `/`; none where it lies in memory or on a network.
pub(super) fn behind_root(sys: &Path) -> io::Result<BTreeSet<String>> {
    let device = fs::metadata("/")?.dev();
    let mut found = BTreeSet::new();
    if nix::sys::stat::major(device) == 0 {
        // btrfs shows a number of its own: the device is in the list of mounts.
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        if let Some(source) = root_source(&mounts)
            && let Ok(metadata) = fs::metadata(source)
        {
            below(sys, metadata.rdev(), &mut found);
        }
        return Ok(found);
    }
    below(sys, device, &mut found);
    Ok(found)
}

/// The names of the disks behind a block device.
pub(super) fn behind(sys: &Path, device: u64) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    below(sys, device, &mut found);
    found
}

/// The device that is mounted at `/`, by the last line that says so (proc(5), `mountinfo`).
fn root_source(mounts: &str) -> Option<PathBuf> {
    let at_root = mounts.lines().rev().find(|line| line.split(' ').nth(4) == Some("/"))?;
    let source = at_root.split_once(" - ")?.1.split(' ').nth(1)?;
    source.starts_with("/dev/").then(|| PathBuf::from(source))
}

fn below(sys: &Path, device: u64, found: &mut BTreeSet<String>) {
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    if let Ok(path) = fs::canonicalize(sys.join(format!("dev/block/{major}:{minor}"))) {
        below_path(&path, DEPTH, found);
    }
}

/// A partition lies on its disk, a mapped device on others.
fn below_path(path: &Path, depth: u32, found: &mut BTreeSet<String>) {
    if depth == 0 {
        return;
    }
    if path.join("partition").exists() {
        if let Some(disk) = path.parent() {
            below_path(disk, depth - 1, found);
        }
        return;
    }
    let slaves = fs::read_dir(path.join("slaves")).into_iter().flatten().flatten();
    for slave in slaves {
        if let Ok(slave) = fs::canonicalize(slave.path()) {
            below_path(&slave, depth - 1, found);
        }
    }
    found.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A sysfs with a disk, its partition, and what is said of it.
    fn disk(sys: &Path, name: &str, number: &str, facts: &[(&str, &str)]) {
        let device = sys.join("devices").join(name);
        fs::create_dir_all(device.join("device")).unwrap();
        for (file, text) in facts {
            fs::write(device.join(file), format!("{text}\n")).unwrap();
        }
        fs::write(device.join("dev"), number).unwrap();
        fs::create_dir_all(sys.join("block")).unwrap();
        fs::create_dir_all(sys.join("dev/block")).unwrap();
        symlink(&device, sys.join("block").join(name)).unwrap();
        symlink(&device, sys.join("dev/block").join(number)).unwrap();
    }

    fn wanted(source: &str, copy: Option<&str>, place: usize) -> Wanted {
        let copy = copy.map(|copy| copy.parse().unwrap());
        Wanted { source: source.parse().unwrap(), copy, gib: 8, place }
    }

    const SOURCE: &str = "vol-0aaaaaaaaaaaaaaaa";
    const COPY: &str = "vol-0bbbbbbbbbbbbbbbb";

    #[test]
    fn a_volume_is_found_by_its_serial_number_and_never_by_its_name() {
        let sys = tempfile::tempdir().unwrap();
        let sys = sys.path();
        let ebs = ("device/model", "Amazon Elastic Block Store");
        disk(sys, "nvme0n1", "259:0", &[("device/serial", "vol0cccccccccccccccc"), ebs]);
        disk(sys, "nvme1n1", "259:1", &[("device/serial", "vol0dddddddddddddddd"), ebs]);
        disk(sys, "nvme2n1", "259:2", &[("device/serial", "  vol0bbbbbbbbbbbbbbbb  "), ebs]);
        let store = ("device/model", "Amazon EC2 NVMe Instance Storage");
        disk(sys, "nvme3n1", "259:3", &[("device/serial", "AWS0123"), store]);
        disk(sys, "loop0", "7:0", &[]);
        let disks = list(sys).unwrap();
        assert_eq!(disks.len(), 4);
        let root = behind(sys, nix::sys::stat::makedev(259, 0));
        assert_eq!(root, BTreeSet::from(["nvme0n1".to_owned()]));
        let one = [wanted(SOURCE, Some(COPY), 0)];
        assert_eq!(one[0].find(&disks).unwrap().name, "nvme2n1");
        assert!(wanted(SOURCE, None, 0).find(&disks).is_none(), "the original is not the copy");
        assert_eq!(unexpected(&disks, &one, &root), ["vol0dddddddddddddddd"]);
        assert!(wanted(SOURCE, Some("vol-0eeeeeeeeeeeeeeee"), 0).may_come(&disks));
        assert!(!wanted(SOURCE, None, 0).may_come(&disks), "no disk could be known as it");
        assert!(evidence_at_root(&disks, &one, &root).is_none());
        for evidence in [
            wanted(SOURCE, Some("vol-0cccccccccccccccc"), 0),
            wanted("vol-0cccccccccccccccc", Some(COPY), 0),
        ] {
            let all = [evidence];
            let (_, name) = evidence_at_root(&disks, &all, &root).expect("the root is evidence");
            assert_eq!(name, "nvme0n1");
        }
    }

    #[test]
    fn under_xen_the_place_and_the_size_tell_a_volume() {
        let sys = tempfile::tempdir().unwrap();
        let size = ((8_u64 << 30) / SECTOR).to_string();
        disk(sys.path(), "xvda", "202:0", &[("size", &size)]);
        disk(sys.path(), "xvdb", "202:16", &[("size", "2048")]);
        disk(sys.path(), "xvdc", "202:32", &[("size", &size)]);
        let disks = list(sys.path()).unwrap();
        assert_eq!(wanted(SOURCE, Some(COPY), 1).find(&disks).unwrap().name, "xvdc");
        assert!(wanted(SOURCE, Some(COPY), 0).find(&disks).is_none(), "another size");
        assert!(wanted(SOURCE, None, 0).may_come(&disks));
        let all = [wanted(SOURCE, Some(COPY), 1)];
        let root = BTreeSet::from(["xvda".to_owned()]);
        assert_eq!(unexpected(&disks, &all, &root), ["xvdb"]);
    }

    #[test]
    fn a_root_on_a_partition_or_a_mapped_device_is_on_its_disks() {
        let sys = tempfile::tempdir().unwrap();
        let sys = sys.path();
        disk(sys, "nvme0n1", "259:0", &[]);
        let partition = sys.join("devices/nvme0n1/nvme0n1p1");
        fs::create_dir(&partition).unwrap();
        fs::write(partition.join("partition"), "1\n").unwrap();
        symlink(&partition, sys.join("dev/block/259:1")).unwrap();
        disk(sys, "nvme1n1", "259:2", &[]);
        disk(sys, "dm-0", "253:0", &[]);
        let slaves = sys.join("devices/dm-0/slaves");
        fs::create_dir(&slaves).unwrap();
        symlink(&partition, slaves.join("nvme0n1p1")).unwrap();
        symlink(sys.join("devices/nvme1n1"), slaves.join("nvme1n1")).unwrap();
        let names = |major, minor| behind(sys, nix::sys::stat::makedev(major, minor));
        assert_eq!(names(259, 1), BTreeSet::from(["nvme0n1".to_owned()]));
        let all = BTreeSet::from(["dm-0".to_owned(), "nvme0n1".to_owned(), "nvme1n1".to_owned()]);
        assert_eq!(names(253, 0), all);
        assert!(names(8, 0).is_empty());
    }

    #[test]
    fn the_device_of_a_root_without_a_number_is_in_the_list_of_mounts() {
        let mounts = "22 1 0:20 / / rw shared:1 - rootfs rootfs rw\n\
                      25 22 0:21 / / rw,relatime shared:2 - btrfs /dev/nvme0n1p1 rw,subvol=/\n\
                      26 25 0:5 / /dev rw - devtmpfs devtmpfs rw\n";
        assert_eq!(root_source(mounts), Some(PathBuf::from("/dev/nvme0n1p1")));
        assert_eq!(root_source("22 1 0:20 / / rw - overlay overlay rw\n"), None);
        assert_eq!(root_source(""), None);
    }
}
