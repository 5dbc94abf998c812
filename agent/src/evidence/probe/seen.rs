//! What to say of evidence in which nothing was recognised.

use std::fmt::Write as _;

use cleanroom_contract::GapKind;

use super::{
    field::has,
    layout::{ContentKind, Trouble},
    source::Region,
};

/// Files that are given for images by mistake: where the signature is, its bytes, what it is, what to
/// do. From each format's specification.
const FORMATS: [(usize, &[u8], &str, &str); 12] = [
    (0, b"QFI\xfb", "a QCOW2 image", "convert a copy: qemu-img convert -O raw"),
    (0, b"KDMV", "a VMDK image", "convert a copy: qemu-img convert -O raw"),
    (0, b"# Disk DescriptorFile", "a VMDK descriptor", "convert a copy: qemu-img convert -O raw"),
    (0, b"vhdxfile", "a VHDX image", "convert a copy: qemu-img convert -O raw"),
    (0, b"conectix", "a VHD image", "convert a copy: qemu-img convert -O raw"),
    (0, b"EVF\x09\x0d\x0a\xff\x00", "an EWF (E01) image", "convert it: ewfexport -f raw"),
    (0, b"EVF2\x0d\x0a\x81\x00", "an EWF (Ex01) image", "convert it: ewfexport -f raw"),
    (
        0,
        b"PK\x03\x04",
        "a zip archive or an AFF4 image",
        "unpack it, or convert it with aff4imager",
    ),
    (0, b"\x1f\x8b", "gzip data", "unpack a copy: gunzip --keep"),
    (0, b"\xfd7zXZ\x00", "xz data", "unpack a copy: unxz --keep"),
    (0, b"\x28\xb5\x2f\xfd", "Zstandard data", "unpack a copy: unzstd --keep"),
    (257, b"ustar", "a tar archive", "unpack a copy and scan the folder"),
];

/// Evidence without a byte.
pub(super) fn nothing() -> Trouble {
    Trouble::new(
        GapKind::Evidence,
        "the evidence is empty: 0 bytes",
        "check that the acquisition ended, and that this is the file or device that was meant",
    )
}

/// A table whose every entry is unused or unusable.
pub(super) fn no_partition(size: u64) -> Trouble {
    Trouble::new(
        GapKind::Evidence,
        format!("the partition table lists no partition on the evidence's {size} bytes"),
        "search the evidence for deleted partitions (testdisk) and for files (photorec)",
    )
}

/// Evidence without a table in which nothing is known: what it begins with.
pub(super) fn unrecognised(whole: &Region<'_>, kind: ContentKind) -> Trouble {
    let (size, head) = (whole.length(), whole.head());
    let looked = head.len();
    if kind == ContentKind::Empty {
        return Trouble::new(
            GapKind::Evidence,
            format!(
                "the evidence of {size} bytes reads as zeros, so far as looked: the first {looked} and the last"
            ),
            "check that the acquisition read the disk, and that the disk was not wiped; search the rest for data",
        );
    }
    let known = FORMATS.iter().find(|(at, signature, ..)| has(head, *at, signature));
    if let Some((_, _, what, advice)) = known {
        let reason =
            format!("the evidence of {size} bytes is not a raw image: it begins like {what}");
        return Trouble::new(GapKind::Evidence, reason, advice);
    }
    let mut first = String::new();
    for byte in head.iter().take(16) {
        let _ = write!(first, " {byte:02x}");
    }
    let boot =
        if has(head, 510, &[0x55, 0xaa]) { "; it has a boot sector's signature" } else { "" };
    let short = if size < 512 { " and is shorter than one sector" } else { "" };
    Trouble::new(
        GapKind::Evidence,
        format!(
            "the evidence of {size} bytes has no partition table and no known file system{short}; it begins with{first}{boot}"
        ),
        "look at it with file and xxd; if it is encrypted open it first, else carve it (photorec) or scan the folder of its files",
    )
}
