//! What the probe answers: plain types that cross a process boundary as named MessagePack.

use std::collections::BTreeMap;

use cleanroom_contract::GapKind;
use serde::{Deserialize, Serialize};

/// The kinds of partition table that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TableKind {
    /// GUID partition table (UEFI 2.10, section 5.3).
    Gpt,
    /// Master boot record with its chain of logical partitions (UEFI 2.10, section 5.2.1, for the record).
    Mbr,
}

impl TableKind {
    /// The name used in the report: `gpt`, `mbr`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Gpt => "gpt",
            Self::Mbr => "mbr",
        }
    }
}

/// What lies on one piece of evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layout {
    /// The partition table that `volumes` comes from; absent where there is none.
    pub(crate) table: Option<TableKind>,
    /// Bytes of a sector, 512 or 4096: the unit the partition table counts in, 512 without one.
    pub(crate) sector: u32,
    /// What can be looked at, in the order of the table. Every one lies inside the evidence.
    pub(crate) volumes: Vec<Part>,
    /// What is wrong with the evidence or its table. Content that merely cannot be mounted (swap, LVM,
    /// something unknown in one partition) is not repeated here: its kind's `advice` says what to do.
    pub(crate) troubles: Vec<Trouble>,
}

/// One partition, or the whole evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    /// Number as Linux counts it, from 1, logical partitions from 5. 0 is the whole evidence.
    pub(crate) number: u32,
    /// The GPT entry's name, printable.
    pub(crate) name: Option<String>,
    /// Partition type: a lower-case GUID, or `0x83` for an MBR.
    pub(crate) type_id: Option<String>,
    /// First byte on the evidence.
    pub(crate) offset: u64,
    /// Bytes that are there; at least one. Less than the table says where `content.truncated`.
    pub(crate) length: u64,
    /// What lies in it.
    pub(crate) content: Content,
}

/// Something about the evidence that keeps part of it from being examined, or makes it doubtful.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trouble {
    /// The gap it becomes.
    pub(crate) kind: GapKind,
    /// The partition concerned; absent for the evidence or the table as a whole.
    pub(crate) number: Option<u32>,
    /// What was seen, for people; printable.
    pub(crate) reason: String,
    /// What to do about it.
    pub(crate) advice: Option<String>,
}

impl Trouble {
    /// A trouble of the whole evidence or table.
    pub(super) fn new(kind: GapKind, reason: impl Into<String>, advice: &str) -> Self {
        let advice = (!advice.is_empty()).then(|| advice.to_owned());
        Self { kind, number: None, reason: reason.into(), advice }
    }

    /// The same, of one partition.
    pub(super) fn of(mut self, number: u32) -> Self {
        self.number = Some(number);
        self
    }
}

/// Troubles, listed up to a number for each kind and counted beyond it, so that hostile evidence can
/// neither flood the report nor crowd one kind out with another.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    listed: Vec<Trouble>,
    seen: BTreeMap<GapKind, u64>,
}

/// Troubles of one kind that are listed one by one.
pub(super) const LISTED: u64 = 64;

impl Troubles {
    /// Lists or counts one.
    pub(super) fn push(&mut self, trouble: Trouble) {
        let seen = self.seen.entry(trouble.kind).or_default();
        *seen = seen.saturating_add(1);
        if *seen <= LISTED {
            self.listed.push(trouble);
        }
    }

    /// Lists or counts several.
    pub(super) fn extend(&mut self, troubles: impl IntoIterator<Item = Trouble>) {
        troubles.into_iter().for_each(|trouble| self.push(trouble));
    }

    /// The list, with one entry for each kind that has more.
    pub(super) fn finish(mut self) -> Vec<Trouble> {
        for (kind, seen) in self.seen {
            if let Some(more) = seen.checked_sub(LISTED).filter(|more| *more > 0) {
                let reason = format!("{more} more problems of this kind are not listed");
                self.listed.push(Trouble::new(kind, reason, "examine the partition table by hand"));
            }
        }
        self.listed
    }
}

/// Changes that the file system's journal holds and its stored state lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unreplayed {
    /// What in the superblock says so, for people.
    pub(crate) reason: String,
}

/// What a superblock tells about a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Content {
    /// What it is.
    pub(crate) kind: ContentKind,
    /// UUID or serial number as `blkid` prints it.
    pub(crate) uuid: Option<String>,
    /// Label, printable. NTFS and exFAT keep theirs inside the file system: absent for them.
    pub(crate) label: Option<String>,
    /// Present where the journal is known to be dirty. XFS does not tell from its superblock, so there
    /// the absence says nothing.
    pub(crate) unreplayed: Option<Unreplayed>,
    /// Bytes that the superblock claims for this partition.
    pub(crate) declared_bytes: Option<u64>,
    /// True where the partition table or the superblock claims more bytes than are there.
    pub(crate) truncated: bool,
}

impl Content {
    /// Content of a kind about which nothing else is known.
    pub(super) fn new(kind: ContentKind) -> Self {
        Self {
            kind,
            uuid: None,
            label: None,
            unreplayed: None,
            declared_bytes: None,
            truncated: false,
        }
    }
}

/// The kinds of content that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ContentKind {
    /// ext without a journal and without ext4's features.
    Ext2,
    /// ext with a journal and without ext4's features.
    Ext3,
    /// ext with any feature that ext3 lacks.
    Ext4,
    /// A journal that an ext file system keeps on its own device.
    Jbd,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// FAT12, FAT16 or FAT32.
    Vfat,
    /// exFAT.
    Exfat,
    /// NTFS.
    Ntfs,
    /// ISO 9660, with or without a UDF bridge.
    Iso9660,
    /// Squashfs 4.
    Squashfs,
    /// UDF alone.
    Udf,
    /// Linux swap space, with or without a hibernated memory image.
    Swap,
    /// LVM2 physical volume.
    Lvm,
    /// LUKS 1 or 2.
    Luks,
    /// Member of a Linux software RAID.
    Md,
    /// Member of a ZFS pool.
    Zfs,
    /// BitLocker.
    Bitlocker,
    /// F2FS.
    F2fs,
    /// EROFS.
    Erofs,
    /// Nothing that is known.
    Unknown,
    /// All zeros wherever the probe looked.
    Empty,
}

impl ContentKind {
    /// The name used in records, `blkid`'s short form: `ext4`, `xfs`, `lvm`, `unknown`…
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ext2 => "ext2",
            Self::Ext3 => "ext3",
            Self::Ext4 => "ext4",
            Self::Jbd => "jbd",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Vfat => "vfat",
            Self::Exfat => "exfat",
            Self::Ntfs => "ntfs",
            Self::Iso9660 => "iso9660",
            Self::Squashfs => "squashfs",
            Self::Udf => "udf",
            Self::Swap => "swap",
            Self::Lvm => "lvm",
            Self::Luks => "luks",
            Self::Md => "md",
            Self::Zfs => "zfs",
            Self::Bitlocker => "bitlocker",
            Self::F2fs => "f2fs",
            Self::Erofs => "erofs",
            Self::Unknown => "unknown",
            Self::Empty => "empty",
        }
    }

    /// The file-system type for mount(2), where the kernel can mount this from one device alone.
    ///
    /// ext2 and ext3 answer `ext4`: that driver mounts all three and is there where the others are
    /// not. Whether the running kernel has the driver is for the caller to find out.
    pub(crate) fn mount_type(self) -> Option<&'static str> {
        match self {
            Self::Ext2 | Self::Ext3 | Self::Ext4 => Some("ext4"),
            Self::Ntfs => Some("ntfs3"),
            Self::Xfs
            | Self::Btrfs
            | Self::Vfat
            | Self::Exfat
            | Self::Iso9660
            | Self::Squashfs
            | Self::Udf
            | Self::F2fs
            | Self::Erofs => Some(self.as_str()),
            Self::Jbd
            | Self::Swap
            | Self::Lvm
            | Self::Luks
            | Self::Md
            | Self::Zfs
            | Self::Bitlocker
            | Self::Unknown
            | Self::Empty => None,
        }
    }

    /// What an investigator can do with content that cannot be mounted; absent for what can.
    pub(crate) fn advice(self) -> Option<&'static str> {
        match self {
            Self::Jbd => Some(
                "an external ext journal: give it to the file system it belongs to, on a copy of both (e2fsck -j, mount -o journal_path)",
            ),
            Self::Swap => Some(
                "memory pages, not files: search the partition with strings and YARA; a hibernated image may hold the whole memory",
            ),
            Self::Lvm => Some(
                "a volume group: on copies of all its disks, run vgchange -ay with the devices read-only, then scan the logical volumes' devices",
            ),
            Self::Luks => Some(
                "encrypted: with a key or passphrase run cryptsetup open --readonly on a copy, then scan the opened device",
            ),
            Self::Md => Some(
                "part of a RAID: on copies of all members run mdadm --assemble --readonly, then scan the assembled device",
            ),
            Self::Zfs => Some(
                "part of a pool: on copies of all members run zpool import -N -o readonly=on, then scan the mounted datasets as folders",
            ),
            Self::Bitlocker => Some(
                "encrypted: with the recovery key or passphrase open a copy read-only (cryptsetup bitlkOpen, dislocker), then scan the opened device",
            ),
            Self::Unknown => Some(
                "not recognised: look at it with file and xxd, carve it with photorec, search it with strings and YARA",
            ),
            Self::Empty => Some(
                "zeros wherever the probe looked: compare with the source, and search the rest where the partition should hold data",
            ),
            Self::Ext2
            | Self::Ext3
            | Self::Ext4
            | Self::Xfs
            | Self::Btrfs
            | Self::Vfat
            | Self::Exfat
            | Self::Ntfs
            | Self::Iso9660
            | Self::Squashfs
            | Self::Udf
            | Self::F2fs
            | Self::Erofs => None,
        }
    }
}
