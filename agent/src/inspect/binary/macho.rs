//! Mach-O, one architecture or several (Apple `mach-o/loader.h`, `mach-o/fat.h`).

use cleanroom_contract::{Binary, BinaryKind};
use goblin::{
    container::Endian,
    mach::{
        constants::cputype::{CPU_ARCH_ABI64, get_arch_name_from_types},
        fat::{FAT_MAGIC, SIZEOF_FAT_ARCH, SIZEOF_FAT_HEADER},
        header::{MH_CIGAM, MH_CIGAM_64, MH_MAGIC, MH_MAGIC_64, filetype_to_str},
        load_command as lc,
    },
};

use super::{LIST_LIMIT, TEXT_LIMIT, bytes::Bytes, push_new, text, unknown};

/// `fat.h`: as `FAT_MAGIC`, with 64-bit offsets.
const FAT_MAGIC_64: u32 = 0xcafe_babf;
/// Load commands that are read of one architecture.
const COMMAND_LIMIT: u32 = 4096;
/// Load commands that only dyld's own programs need to understand carry this bit.
const REQUIRED_BY_DYLD: u32 = 0x8000_0000;

/// The facts of a Mach-O file. Those of a fat one are of all its architectures together.
///
/// # Errors
/// Where neither kind of header can be read.
pub(super) fn facts(data: &[u8]) -> Result<Binary, String> {
    let bytes = Bytes { data, endian: Endian::Big };
    match bytes.u32(0) {
        Some(magic @ (FAT_MAGIC | FAT_MAGIC_64)) => fat(bytes, magic == FAT_MAGIC_64),
        _ => {
            let mut binary = unknown(BinaryKind::MachO);
            let (class, end) = add(&mut binary, data)?;
            binary.class = Some(class);
            binary.overlay = Some(bytes.behind(end));
            Ok(binary)
        }
    }
}

/// A header that lists architectures; its numbers are big-endian.
fn fat(bytes: Bytes<'_>, wide: bool) -> Result<Binary, String> {
    let mut binary = unknown(BinaryKind::MachOFat);
    let count = bytes.u32(4).ok_or("fat header cut short")?;
    let size = if wide { 32 } else { SIZEOF_FAT_ARCH as u64 };
    let mut end = SIZEOF_FAT_HEADER as u64;
    for index in 0..u64::from(count).min(LIST_LIMIT as u64) {
        let at = SIZEOF_FAT_HEADER as u64 + index * size;
        let place = if wide {
            bytes.u64(at + 8).zip(bytes.u64(at + 16))
        } else {
            bytes.u32(at + 8).map(u64::from).zip(bytes.u32(at + 12).map(u64::from))
        };
        let Some((offset, length)) = place else { break };
        end = end.max(at + size).max(offset.saturating_add(length));
        // An architecture that cannot be read is still named by the list.
        if add(&mut binary, bytes.up_to(offset, length)).is_err()
            && let Some((cpu, subtype)) = bytes.u32(at).zip(bytes.u32(at + 4))
        {
            push_new(&mut binary.machines, architecture(cpu, subtype));
        }
    }
    if binary.machines.is_empty() {
        return Err("fat header lists no architecture".to_owned());
    }
    binary.overlay = Some(bytes.behind(end));
    Ok(binary)
}

/// Adds what one architecture's image says; its class, and the end of what its header accounts for.
fn add(binary: &mut Binary, data: &[u8]) -> Result<(u8, u64), String> {
    let bytes = Bytes { data, endian: Endian::Big };
    let (endian, class) = match bytes.u32(0).ok_or("Mach-O header cut short")? {
        MH_MAGIC => (Endian::Big, 32),
        MH_MAGIC_64 => (Endian::Big, 64),
        MH_CIGAM => (Endian::Little, 32),
        MH_CIGAM_64 => (Endian::Little, 64),
        other => return Err(format!("Mach-O magic {other:#010x}")),
    };
    let bytes = Bytes { data, endian };
    let field = |index: u64| bytes.u32(index * 4).ok_or("Mach-O header cut short");
    push_new(&mut binary.machines, architecture(field(1)?, field(2)?));
    binary.object_type.get_or_insert(filetype_to_str(field(3)?).to_lowercase());
    let count = field(4)?;
    let mut at: u64 = if class == 64 { 32 } else { 28 };
    let mut end = at.saturating_add(u64::from(field(5)?));
    for _ in 0..count.min(COMMAND_LIMIT) {
        let Some((command, size)) = bytes.u32(at).zip(bytes.u32(at + 4)) else { break };
        match command & !REQUIRED_BY_DYLD {
            lc::LC_LOAD_DYLIB | LAZY_LOAD | WEAK | REEXPORT | UPWARD => {
                if let Some(name) = bytes.u32(at + 8) {
                    let command = Bytes { data: bytes.up_to(at, u64::from(size)), ..bytes };
                    let name = command.string(u64::from(name), TEXT_LIMIT).unwrap_or_default();
                    push_new(&mut binary.libraries, text(name, TEXT_LIMIT));
                }
            }
            lc::LC_SEGMENT => end = end.max(segment_end(bytes, at + 32, 4)),
            lc::LC_SEGMENT_64 => end = end.max(segment_end(bytes, at + 40, 8)),
            lc::LC_CODE_SIGNATURE => binary.signature_present = Some(true),
            _ => {}
        }
        // Less than its own header: nothing behind it can be found.
        if size < 8 {
            break;
        }
        at += u64::from(size);
    }
    Ok((class, end))
}

const LAZY_LOAD: u32 = lc::LC_LAZY_LOAD_DYLIB;
const WEAK: u32 = lc::LC_LOAD_WEAK_DYLIB & !REQUIRED_BY_DYLD;
const REEXPORT: u32 = lc::LC_REEXPORT_DYLIB & !REQUIRED_BY_DYLD;
const UPWARD: u32 = lc::LC_LOAD_UPWARD_DYLIB & !REQUIRED_BY_DYLD;

/// The end in the file of the segment whose file offset and size stand at `at`, `width` bytes each.
fn segment_end(bytes: Bytes<'_>, at: u64, width: u64) -> u64 {
    let number = |at| if width == 8 { bytes.u64(at) } else { bytes.u32(at).map(u64::from) };
    number(at).zip(number(at + width)).map_or(0, |(offset, size)| offset.saturating_add(size))
}

/// `arm64`, `x86_64`…, without what the subtype's capability bits add.
fn architecture(cpu: u32, subtype: u32) -> String {
    let known = get_arch_name_from_types(cpu, subtype & 0x00ff_ffff)
        .or_else(|| get_arch_name_from_types(cpu, 0));
    known.map_or_else(
        || {
            format!(
                "machine-{}{}",
                cpu & !CPU_ARCH_ABI64,
                if cpu & CPU_ARCH_ABI64 == 0 { "" } else { "-64" }
            )
        },
        str::to_owned,
    )
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn one_architecture() {
        let mut data = samples::macho(&["/usr/lib/libSystem.B.dylib", "@rpath/libx.dylib"]);
        data.extend([1, 2, 3]);
        let binary = facts(&data).unwrap();
        assert_eq!((binary.kind, binary.class), (BinaryKind::MachO, Some(64)));
        assert_eq!(binary.machines, ["arm64"]);
        assert_eq!(binary.object_type.as_deref(), Some("execute"));
        assert_eq!(binary.libraries, ["/usr/lib/libSystem.B.dylib", "@rpath/libx.dylib"]);
        assert_eq!(binary.overlay, Some(3));
    }

    #[test]
    fn several_architectures_are_taken_together() {
        let parts = [
            samples::macho(&["/a.dylib"]),
            samples::macho(&["/a.dylib", "/b.dylib"]),
            b"not one".to_vec(),
        ];
        let binary = facts(&samples::fat(&parts)).unwrap();
        assert_eq!((binary.kind, binary.class), (BinaryKind::MachOFat, None));
        assert_eq!(
            (binary.machines, binary.libraries),
            (vec!["arm64".to_owned()], vec!["/a.dylib".to_owned(), "/b.dylib".to_owned()])
        );
        assert_eq!(binary.overlay, Some(0));
    }

    #[test]
    fn cut_or_foreign_headers_are_an_error() {
        for data in [
            &b""[..],
            b"\xcf\xfa\xed",
            b"\xcf\xfa\xed\xfe\x07\0\0\x01",
            b"\xca\xfe\xba\xbe",
            b"\xca\xfe\xba\xbe\0\0\0\x02",
            b"ELF?",
        ] {
            assert!(facts(data).is_err(), "{}", data.escape_ascii());
        }
    }

    #[test]
    fn a_command_of_no_size_ends_the_reading() {
        let mut data = samples::macho(&["/a.dylib", "/b.dylib"]);
        data[36..40].fill(0);
        assert_eq!(facts(&data).unwrap().libraries.len(), 1);
    }
}
