//! Content format from the first bytes.
//!
//! Purpose: one name for what a content is, whatever the file is called. Names are those that THOR and
//! Loki give their rules in the external variable `filetype`, in upper case, where they have one (their
//! list is signature-base `misc/file-type-signatures.txt`). Touches the bytes it is given, at most the
//! first 4 KiB of a file. Never judges, and never reads further: a ZIP is ZIP whatever it packs.

/// Every name that [`identify`] can return, and what it stands for.
pub(crate) const FORMATS: &[(&str, &str)] = &[
    ("7ZIP", "7-Zip archive"),
    ("AR", "ar archive, static library"),
    ("AVI", "AVI video (RIFF)"),
    ("BMP", "Windows bitmap"),
    ("BZIP2", "bzip2 compressed data"),
    ("CAB", "Windows cabinet"),
    ("CPIO", "cpio archive"),
    ("DEB", "Debian package"),
    ("DEX", "Dalvik executable"),
    ("ELF", "ELF executable, library, object or core"),
    ("EVT", "Windows event log, before Vista"),
    ("EVTX", "Windows event log"),
    ("EXE", "DOS or Windows executable (MZ, PE)"),
    ("FLAC", "FLAC audio"),
    ("GIF", "GIF image"),
    ("GZIP", "gzip compressed data"),
    ("HTML", "HTML text"),
    ("ICO", "Windows icon or cursor"),
    ("JAVA", "Java class"),
    ("JOURNAL", "systemd journal"),
    ("JPEG", "JPEG image"),
    ("JSP", "Java or Active Server Page"),
    ("LNK", "Windows shortcut"),
    ("LUAC", "compiled Lua"),
    ("LZ4", "LZ4 compressed data"),
    ("MACHO", "Mach-O executable, one architecture or several"),
    ("MDMP", "Windows minidump"),
    ("MP3", "MPEG audio"),
    ("MP4", "MP4, QuickTime or HEIF"),
    ("OGG", "Ogg audio or video"),
    ("OLE", "OLE compound file: older Office document, MSI"),
    ("PCAP", "libpcap capture"),
    ("PCAPNG", "pcapng capture"),
    ("PDF", "PDF document"),
    ("PEM", "PEM text: certificate or key"),
    ("PHP", "PHP script"),
    ("PNG", "PNG image"),
    ("PYC", "compiled Python"),
    ("QCOW2", "QEMU disk image"),
    ("RAR", "RAR archive"),
    ("REGISTRY", "Windows registry hive"),
    ("RIFF", "other RIFF container"),
    ("RPM", "RPM package"),
    ("RTF", "Rich Text Format"),
    ("SCRIPT", "text that names its interpreter (#!)"),
    ("SQLITE", "SQLite 3 database"),
    ("SQUASHFS", "Squashfs image"),
    ("SSHKEY", "OpenSSH or PuTTY key"),
    ("SWF", "Flash"),
    ("TAR", "tar archive"),
    ("TARZ", "compress (.Z) data"),
    ("TEXT", "UTF-8 or ASCII text without control characters"),
    ("TIFF", "TIFF image"),
    ("VMDK", "VMware disk image"),
    ("WASM", "WebAssembly"),
    ("WAV", "WAV audio (RIFF)"),
    ("WEBP", "WebP image (RIFF)"),
    ("XML", "XML text"),
    ("XZ", "xz compressed data"),
    ("ZIP", "ZIP archive, also OOXML, JAR and APK"),
    ("ZSTD", "Zstandard compressed data"),
];

/// The format of a content that begins with `head`, a name of [`FORMATS`]. `None` for no bytes, and for
/// what is not recognised.
pub(crate) fn identify(head: &[u8]) -> Option<&'static str> {
    let first = *head.first()?;
    let by_magic = match first {
        ..0x20 => below_space(head),
        0x20..0x60 => printable_upper(head),
        0x60..0x80 => printable_lower(head),
        0x80.. => above_ascii(head),
    };
    by_magic.or_else(|| tar_or_pyc(head)).or_else(|| markup(head)).or_else(|| text(head))
}

/// First byte 0x00 to 0x1f.
fn below_space(head: &[u8]) -> Option<&'static str> {
    match head {
        [0x1f, 0x8b, 0x08, ..] => Some("GZIP"),
        [0x1f, 0x9d | 0xa0, ..] => Some("TARZ"),
        [0x1b, b'L', b'u', b'a', ..] => Some("LUAC"),
        [0x00, b'a', b's', b'm', ..] => Some("WASM"),
        // An icon or cursor directory with a plausible number of images.
        [0x00, 0x00, 0x01 | 0x02, 0x00, 1..=64, 0x00, _, _, _, 0x00, ..] => Some("ICO"),
        // The first box is small, and is a `ftyp`.
        [0x00, 0x00, _, _, b'f', b't', b'y', b'p', ..] => Some("MP4"),
        [0x04, 0x22, 0x4d, 0x18, ..] => Some("LZ4"),
        [0x0a, 0x0d, 0x0d, 0x0a, ..] => Some("PCAPNG"),
        _ => None,
    }
}

/// First byte 0x20 to 0x5f: space, digits, upper case.
fn printable_upper(head: &[u8]) -> Option<&'static str> {
    match head {
        [b'M', b'Z', ..] => text(head).is_none().then_some("EXE"),
        [b'#', b'!', ..] => Some("SCRIPT"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("ZSTD"),
        [0x4d, 0x3c, 0xb2, 0xa1, ..] => Some("PCAP"),
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] | [b'P', b'K', 7, 8, ..] => Some("ZIP"),
        [b'%', b'P', b'D', b'F', b'-', ..] => Some("PDF"),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Some("BZIP2"),
        [b'R', b'a', b'r', b'!', 0x1a, 0x07, ..] => Some("RAR"),
        [b'7', b'z', 0xbc, 0xaf, 0x27, 0x1c, ..] => Some("7ZIP"),
        [b'M', b'S', b'C', b'F', 0, 0, 0, 0, ..] => Some("CAB"),
        [b'M', b'D', b'M', b'P', ..] => Some("MDMP"),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some("GIF"),
        [b'I', b'I', b'*', 0, ..] | [b'M', b'M', 0, b'*', ..] => Some("TIFF"),
        // The reserved words are zero; plain text that begins with BM has letters there.
        [b'B', b'M', _, _, _, _, 0, 0, 0, 0, ..] => Some("BMP"),
        [b'I', b'D', b'3', 2..=4, ..] => Some("MP3"),
        [b'O', b'g', b'g', b'S', 0, ..] => Some("OGG"),
        [b'R', b'I', b'F', b'F', _, _, _, _, kind @ ..] => riff(kind),
        [b'C' | b'F' | b'Z', b'W', b'S', 3..=50, ..] => Some("SWF"),
        [b'K', b'D', b'M', b'V', ..] => Some("VMDK"),
        [b'Q', b'F', b'I', 0xfb, ..] => Some("QCOW2"),
        [b'L', 0, 0, 0, 0x01, 0x14, 0x02, 0, ..] => Some("LNK"),
        [b'0', 0, 0, 0, b'L', b'f', b'L', b'e', ..] => Some("EVT"),
        [b'!', ..] if head.starts_with(b"!<arch>\n") => archive(head),
        [b'S', ..] if head.starts_with(b"SQLite format 3\0") => Some("SQLITE"),
        [b'L', ..] if head.starts_with(b"LPKSHHRH") => Some("JOURNAL"),
        [b'E', ..] if head.starts_with(b"ElfFile\0") => Some("EVTX"),
        [b'P', ..] if head.starts_with(b"PuTTY-User-Key-File-") => Some("SSHKEY"),
        [b'0', b'7', b'0', b'7', b'0', b'1' | b'2' | b'7', ..] => Some("CPIO"),
        [b'-', ..] => pem(head),
        _ => None,
    }
}

/// First byte 0x60 to 0x7f: lower case.
fn printable_lower(head: &[u8]) -> Option<&'static str> {
    match head {
        [0x7f, b'E', b'L', b'F', ..] => Some("ELF"),
        [b'{', b'\\', b'r', b't', b'f', ..] => Some("RTF"),
        [b'd', b'e', b'x', b'\n', b'0', ..] => Some("DEX"),
        [b'f', b'L', b'a', b'C', ..] => Some("FLAC"),
        [b'h', b's', b'q', b's', ..] => Some("SQUASHFS"),
        [b'r', b'e', b'g', b'f', ..] => text(head).is_none().then_some("REGISTRY"),
        [b's', ..]
            if head.starts_with(b"ssh-")
                && head.get(..40).is_some_and(|h| contains(h, b" AAAA")) =>
        {
            Some("SSHKEY")
        }
        [b'e', ..] if head.starts_with(b"ecdsa-sha2-") => Some("SSHKEY"),
        _ => None,
    }
}

/// First byte 0x80 to 0xff.
fn above_ascii(head: &[u8]) -> Option<&'static str> {
    match head {
        [0x89, b'P', b'N', b'G', 0x0d, 0x0a, ..] => Some("PNG"),
        [0xff, 0xd8, 0xff, ..] => Some("JPEG"),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some("XZ"),
        [0xd0, 0xcf, 0x11, 0xe0, 0xa1, 0xb1, 0x1a, 0xe1, ..] => Some("OLE"),
        [0xed, 0xab, 0xee, 0xdb, ..] => Some("RPM"),
        [0xfe, 0xed, 0xfa, 0xce | 0xcf, ..] | [0xce | 0xcf, 0xfa, 0xed, 0xfe, ..] => Some("MACHO"),
        [0xca, 0xfe, 0xba, 0xbf, ..] => Some("MACHO"),
        // A fat Mach-O counts its architectures where a class has its version, 45 and up (JVMS 4.1).
        [0xca, 0xfe, 0xba, 0xbe, 0, 0, 0, 1..45, ..] => Some("MACHO"),
        [0xca, 0xfe, 0xba, 0xbe, ..] => Some("JAVA"),
        [0xd4, 0xc3, 0xb2, 0xa1, ..] | [0xa1, 0xb2, 0xc3 | 0x3c, 0xd4 | 0x4d, ..] => Some("PCAP"),
        [0xc7, 0x71, ..] => Some("CPIO"),
        // Frame header of layer III: no reserved version, bit rate or sampling rate.
        [0xff, 0xfb | 0xfa | 0xf3 | 0xf2 | 0xe3 | 0xe2, rates, ..]
            if rates >> 4 != 0 && rates >> 4 != 0xf && rates >> 2 & 3 != 3 =>
        {
            Some("MP3")
        }
        _ => None,
    }
}

fn riff(kind: &[u8]) -> Option<&'static str> {
    match kind {
        [b'W', b'E', b'B', b'P', ..] => Some("WEBP"),
        [b'A', b'V', b'I', b' ', ..] => Some("AVI"),
        [b'W', b'A', b'V', b'E', ..] => Some("WAV"),
        _ => Some("RIFF"),
    }
}

fn archive(head: &[u8]) -> Option<&'static str> {
    if head.get(8..).is_some_and(|member| member.starts_with(b"debian-binary")) {
        Some("DEB")
    } else {
        Some("AR")
    }
}

fn pem(head: &[u8]) -> Option<&'static str> {
    let label = head.strip_prefix(b"-----BEGIN ")?;
    if label.starts_with(b"OPENSSH PRIVATE KEY") { Some("SSHKEY") } else { Some("PEM") }
}

/// Texts that are known by their first word, after a byte-order mark and white space.
fn markup(head: &[u8]) -> Option<&'static str> {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let opens = |word: &[u8]| head.get(..word.len()).is_some_and(|h| h.eq_ignore_ascii_case(word));
    if opens(b"<?php") || opens(b"<?=") {
        Some("PHP")
    } else if opens(b"<?xml") {
        Some("XML")
    } else if opens(b"<!doctype html") || opens(b"<html") {
        Some("HTML")
    } else if opens(b"<%") {
        Some("JSP")
    } else {
        None
    }
}

/// Formats whose first byte can be anything.
fn tar_or_pyc(head: &[u8]) -> Option<&'static str> {
    if head.get(257..262) == Some(b"ustar") {
        return Some("TAR");
    }
    // CPython's magic number, little-endian, then CR LF: 3000 and up since 3.0, and the release series of
    // Python 2 (Lib/importlib/_bootstrap_external.py lists them).
    if let [low, high, 0x0d, 0x0a, ..] = head
        && matches!(u16::from_le_bytes([*low, *high]), 3000..=3999 | 20121 | 50428 | 50823 | 60202 | 60717 | 62011..=62299)
    {
        return Some("PYC");
    }
    None
}

/// TEXT for UTF-8 without control characters; those that file(1) takes for text are allowed: BEL, BS,
/// TAB, LF, FF, CR, ESC. The head may cut the last character.
fn text(head: &[u8]) -> Option<&'static str> {
    let valid = match std::str::from_utf8(head) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none() && error.valid_up_to() > 0,
    };
    let control = |byte: &u8| matches!(byte, ..7 | 11 | 14..=26 | 28..32 | 0x7f);
    (valid && !head.iter().any(control)).then_some("TEXT")
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// A head for every name, and heads that come close to one.
    const SAMPLES: &[(&[u8], Option<&str>)] = &[
        (b"", None),
        (b"\x7fELF\x02\x01\x01", Some("ELF")),
        (b"MZ\x90\0\x03", Some("EXE")),
        (b"MZ is where the text begins", Some("TEXT")),
        (b"\xcf\xfa\xed\xfe\x07", Some("MACHO")),
        (b"\xfe\xed\xfa\xce\0\0\0\x07", Some("MACHO")),
        (b"\xca\xfe\xba\xbe\0\0\0\x02", Some("MACHO")),
        (b"\xca\xfe\xba\xbf\0\0\0\x02", Some("MACHO")),
        (b"\xca\xfe\xba\xbe\0\0\0\x34", Some("JAVA")),
        (b"\xca\xfe\xba\xbe\0\x03\0\x2d", Some("JAVA")),
        (b"PK\x03\x04\x14\0\x06\0", Some("ZIP")),
        (b"PK\x05\x06", Some("ZIP")),
        (b"PKzip is text", Some("TEXT")),
        (b"\x1f\x8b\x08\0", Some("GZIP")),
        (b"\x1f\x9d\x90", Some("TARZ")),
        (b"BZh91AY&SY\x01", Some("BZIP2")),
        (b"\xfd7zXZ\0\0", Some("XZ")),
        (b"\x28\xb5\x2f\xfd\x04", Some("ZSTD")),
        (b"\x04\x22\x4d\x18\x64", Some("LZ4")),
        (b"7z\xbc\xaf\x27\x1c\0", Some("7ZIP")),
        (b"Rar!\x1a\x07\x01\0", Some("RAR")),
        (b"MSCF\0\0\0\0", Some("CAB")),
        (b"!<arch>\ndebian-binary   ", Some("DEB")),
        (b"!<arch>\n/               ", Some("AR")),
        (b"\xed\xab\xee\xdb\x03", Some("RPM")),
        (b"070701000", Some("CPIO")),
        (b"%PDF-1.7\n", Some("PDF")),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Some("OLE")),
        (b"{\\rtf1\\ansi", Some("RTF")),
        (b"\xff\xd8\xff\xe0", Some("JPEG")),
        (b"\x89PNG\r\n\x1a\n", Some("PNG")),
        (b"GIF89a\x01", Some("GIF")),
        (b"BM\x46\0\0\0\0\0\0\0\x36", Some("BMP")),
        (b"BMW is a car", Some("TEXT")),
        (b"II*\0\x08", Some("TIFF")),
        (b"\0\0\x01\0\x01\0\x10\x10\0\0\x01", Some("ICO")),
        (b"RIFF\x24\0\0\0WEBPVP8 ", Some("WEBP")),
        (b"RIFF\x24\0\0\0AVI LIST", Some("AVI")),
        (b"RIFF\x24\0\0\0WAVEfmt ", Some("WAV")),
        (b"RIFF\x24\0\0\0ACON", Some("RIFF")),
        (b"ID3\x04\0", Some("MP3")),
        (b"\xff\xfb\x90\x64", Some("MP3")),
        (b"\xff\xfe#\0!\0", None),
        (b"\0\0\0\x20ftypisom", Some("MP4")),
        (b"OggS\0\x02", Some("OGG")),
        (b"fLaC\0\0", Some("FLAC")),
        (b"SQLite format 3\0\x10", Some("SQLITE")),
        (b"\xd4\xc3\xb2\xa1\x02\0", Some("PCAP")),
        (b"\xa1\xb2\x3c\x4d\0\x02", Some("PCAP")),
        (b"\x4d\x3c\xb2\xa1\x02\0", Some("PCAP")),
        (b"\x0a\x0d\x0d\x0a\x1c", Some("PCAPNG")),
        (b"\xcb\x0d\x0d\x0a\0\0\0\0", Some("PYC")),
        (b"\x03\xf3\x0d\x0a", Some("PYC")),
        (b"\0asm\x01\0\0\0", Some("WASM")),
        (b"\x1bLuaS", Some("LUAC")),
        (b"dex\n035\0", Some("DEX")),
        (b"#!/bin/sh\n", Some("SCRIPT")),
        (b"\xef\xbb\xbf<?xml version", Some("XML")),
        (b"<?xml version", Some("XML")),
        (b"  <!DOCTYPE HTML>", Some("HTML")),
        (b"<?php eval(", Some("PHP")),
        (b"<%@ page", Some("JSP")),
        (b"-----BEGIN CERTIFICATE-----", Some("PEM")),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----", Some("SSHKEY")),
        (b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAA a@b", Some("SSHKEY")),
        (b"ssh-keygen is a program that makes a key for you", Some("TEXT")),
        (b"PuTTY-User-Key-File-3: ssh-rsa", Some("SSHKEY")),
        (b"LPKSHHRH\0", Some("JOURNAL")),
        (b"ElfFile\0", Some("EVTX")),
        (b"0\0\0\0LfLe", Some("EVT")),
        (b"regf\x01\0\0\0", Some("REGISTRY")),
        (b"L\0\0\0\x01\x14\x02\0", Some("LNK")),
        (b"MDMP\x93\xa7", Some("MDMP")),
        (b"CWS\x08\x01", Some("SWF")),
        (b"KDMV\x01\0", Some("VMDK")),
        (b"QFI\xfb\0\0", Some("QCOW2")),
        (b"hsqs\x01\0", Some("SQUASHFS")),
        ("na\u{ef}ve text\n".as_bytes(), Some("TEXT")),
        (b"cut at \xe2\x82", Some("TEXT")),
        (b"\xe2\x82", None),
        (b"bad \xe2\x82 inside", None),
        (b"nul\0", None),
        (b"\xff\xff\xff\xff", None),
    ];

    #[test]
    fn first_bytes_give_the_name() {
        for (head, name) in SAMPLES {
            assert_eq!(identify(head), *name, "{}", head.escape_ascii());
        }
    }

    #[test]
    fn a_tar_is_known_by_its_magic_behind_the_name() {
        let mut head = vec![0; 512];
        head[..4].copy_from_slice(b"file");
        assert_eq!(identify(&head), None);
        head[257..262].copy_from_slice(b"ustar");
        assert_eq!(identify(&head), Some("TAR"));
    }

    /// What `identify` can return is what stands as `Some("…")` or `then_some("…")` in its source.
    #[test]
    fn the_documented_list_is_what_can_be_returned() {
        let source = include_str!("format.rs").split("#[cfg(test)]").next().unwrap_or_default();
        let returned: BTreeSet<&str> = source
            .split("ome(\"")
            .skip(1)
            .filter_map(|rest| rest.split_once("\")").map(|(name, _)| name))
            .collect();
        let documented: BTreeSet<&str> = FORMATS.iter().map(|(name, _)| *name).collect();
        assert_eq!(returned, documented);
        assert_eq!(documented.len(), FORMATS.len());
        let sampled: BTreeSet<&str> =
            SAMPLES.iter().filter_map(|(_, name)| *name).chain(["TAR"]).collect();
        assert_eq!(sampled, documented);
        assert!(FORMATS.is_sorted(), "listed for people, in order");
    }

    proptest! {
        #[test]
        fn any_head_has_a_listed_name_or_none(sample in 0..SAMPLES.len(), cut in 0..12_usize, tail in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut head: Vec<u8> = SAMPLES[sample].0.iter().copied().take(cut).collect();
            head.extend(tail);
            if let Some(name) = identify(&head) {
                prop_assert!(FORMATS.iter().any(|(listed, _)| *listed == name));
            }
        }
    }
}
