//! PE (Microsoft, "PE Format", learn.microsoft.com/windows/win32/debug/pe-format).
//!
//! The import hash follows pefile 2024.8.26 (`get_imphash`, `parse_import_directory`, `get_import_table`),
//! the one that others compare with, for imports that are well formed: order as in the file, library in
//! lower case without `.dll`, `.ocx` or `.sys`, `.`, function in lower case; an import by number has its
//! name from pefile's tables for three libraries, else `ord` and the number. pefile's guesses at damaged
//! tables (repeated addresses, a spread of more than 128 MiB) are not repeated.

use std::{collections::HashMap, sync::LazyLock};

use cleanroom_contract::{Binary, BinaryKind, Section, Timestamp};
use goblin::{
    container::Endian,
    pe::{characteristic::is_dll, header as h, optional_header as o},
};
use md5::{Digest, Md5};

use super::{SECTION_LIMIT, TEXT_LIMIT, bytes::Bytes, packer_of_section, push_new, text, unknown};
use crate::inspect::entropy::entropy_of;

/// Imports that are read of a file. pefile stops at `MAX_IMPORT_SYMBOLS`, 0x2000, and counts both tables
/// of a library.
const IMPORT_LIMIT: usize = 0x1000;
/// Libraries that are read; each costs a descriptor of 20 bytes.
const LIBRARY_LIMIT: u64 = 4096;
/// pefile's bound on names, `MAX_DLL_LENGTH` and `MAX_IMPORT_NAME_LENGTH`.
const NAME_LIMIT: usize = 0x200;
/// Numbers of exports that Microsoft's libraries are imported by, as pefile names them: lines of
/// library, number, name.
const ORDINALS: &str = include_str!("ordinals.txt");

static ORDINAL_NAMES: LazyLock<HashMap<(&'static str, u16), &'static str>> = LazyLock::new(|| {
    let line = |line: &'static str| {
        let mut words = line.split(' ');
        Some(((words.next()?, words.next()?.parse().ok()?), words.next()?))
    };
    ORDINALS.lines().filter_map(line).collect()
});

/// A section header's numbers.
struct Range {
    address: u64,
    virtual_size: u64,
    offset: u64,
    size: u64,
}

struct Image<'a> {
    bytes: Bytes<'a>,
    /// Where the optional header begins, and its magic.
    optional: u64,
    wide: bool,
    file_alignment: u32,
    sections: Vec<Range>,
}

/// The facts of a PE file; `None` for other programs that begin with MZ.
///
/// # Errors
/// Where the PE signature is there and its headers are not.
pub(super) fn facts(data: &[u8]) -> Result<Option<Binary>, String> {
    let bytes = Bytes { data, endian: Endian::Little };
    let Some(at) =
        bytes.u32(0x3c).map(u64::from).filter(|at| bytes.slice(*at, 4) == Some(b"PE\0\0"))
    else {
        return Ok(None);
    };
    let coff = at + 4;
    let cut = "PE header cut short";
    let machine = bytes.u16(coff).ok_or(cut)?;
    let count = bytes.u16(coff + 2).ok_or(cut)?;
    let time = bytes.u32(coff + 4).ok_or(cut)?;
    let optional_size = u64::from(bytes.u16(coff + 16).ok_or(cut)?);
    let characteristics = bytes.u16(coff + 18).ok_or(cut)?;
    let optional = coff + 20;

    let mut binary = unknown(BinaryKind::Pe);
    binary.machines = vec![machine_name(machine)];
    binary.object_type = Some(if is_dll(characteristics) { "dll" } else { "exe" }.to_owned());
    binary.compile_time = Some(Timestamp { seconds: i64::from(time), nanos: 0 });
    let wide = bytes.u16(optional) == Some(o::MAGIC_64);
    if wide || bytes.u16(optional) == Some(o::MAGIC_32) {
        binary.class = Some(if wide { 64 } else { 32 });
    }
    let mut image = Image {
        bytes,
        optional,
        wide,
        file_alignment: bytes.u32(optional + 36).unwrap_or(0),
        sections: Vec::new(),
    };
    image.read_sections(&mut binary, optional + optional_size, count);
    let certificates = image.directory(4).filter(|(_, size)| *size > 0);
    binary.signature_present = Some(certificates.is_some());
    let table_end = optional + optional_size + 40 * u64::from(count);
    // The certificate table's address is an offset in the file.
    let certificates_end = certificates.map_or(0, |(offset, size)| offset + size);
    let sections_end =
        image.sections.iter().map(|range| range.offset + range.size).max().unwrap_or(0);
    binary.overlay = Some(bytes.behind(table_end.max(certificates_end).max(sections_end)));
    image.read_imports(&mut binary);
    Ok(Some(binary))
}

impl<'a> Image<'a> {
    fn read_sections(&mut self, binary: &mut Binary, table: u64, count: u16) {
        // One that is listed several times over is measured once: together no more than the file.
        let mut budget = self.bytes.data.len();
        for index in 0..u64::from(count).min(SECTION_LIMIT as u64) {
            let at = table + index * 40;
            let Some(header) = self.bytes.slice(at, 40) else { break };
            let header = Bytes { data: header, ..self.bytes };
            let number = |at| u64::from(header.u32(at).unwrap_or(0));
            let range = Range {
                address: number(12),
                virtual_size: number(8),
                offset: self.aligned(number(20)),
                size: number(16),
            };
            let name = header.string(0, 8).unwrap_or_default();
            if let Some(packer) = packer_of_section(name) {
                push_new(&mut binary.packers, packer.to_owned());
            }
            let content = self.bytes.up_to(range.offset, range.size);
            let entropy = (!content.is_empty() && content.len() <= budget).then(|| {
                budget -= content.len();
                entropy_of(content)
            });
            binary.sections.push(Section {
                name: text(name, 64),
                size: content.len() as u64,
                entropy,
            });
            self.sections.push(range);
        }
    }

    /// The loader rounds a section's offset down to a sector, whatever alignment of at least one sector
    /// the file says.
    fn aligned(&self, offset: u64) -> u64 {
        if self.file_alignment < 0x200 { offset } else { offset & !0x1ff }
    }

    /// Address and size of a data directory; the certificate table's address is an offset in the file.
    fn directory(&self, index: u64) -> Option<(u64, u64)> {
        let count_at = self.optional + if self.wide { 108 } else { 92 };
        let count = u64::from(self.bytes.u32(count_at)?);
        let at = count_at + 4 + index * 8;
        let entry = (u64::from(self.bytes.u32(at)?), u64::from(self.bytes.u32(at + 4)?));
        (index < count && entry.0 != 0).then_some(entry)
    }

    /// Where in the file the byte of an address is. What no section holds is in the headers.
    fn offset_of(&self, address: u64) -> Option<u64> {
        let holder = self.sections.iter().find(|range| {
            let size = range.size.max(range.virtual_size);
            (range.address..range.address.saturating_add(size)).contains(&address)
        });
        match holder {
            Some(range) => range.offset.checked_add(address - range.address),
            None => Some(address).filter(|address| *address < self.bytes.data.len() as u64),
        }
    }

    fn string_at(&self, address: u64) -> Option<&'a [u8]> {
        self.bytes.string(self.offset_of(address)?, NAME_LIMIT)
    }

    /// Libraries and the import hash. A file that imports nothing has no hash, nor has one with more
    /// imports than are read: it would be a hash of something else.
    fn read_imports(&self, binary: &mut Binary) {
        let Some((directory, _)) = self.directory(1) else { return };
        let mut hash = Md5::new();
        let (mut first, mut budget) = (true, IMPORT_LIMIT);
        for index in 0..LIBRARY_LIMIT {
            let Some(at) = self.offset_of(directory + index * 20) else { break };
            let Some(raw) =
                self.bytes.slice(at, 20).filter(|raw| raw.iter().any(|byte| *byte != 0))
            else {
                break;
            };
            let field = |at| u64::from(Bytes { data: raw, ..self.bytes }.u32(at).unwrap_or(0));
            let name = self.string_at(field(12)).unwrap_or_default();
            if !name.is_empty() {
                push_new(&mut binary.libraries, text(name, TEXT_LIMIT));
            }
            let mut thunks = self.thunks(field(0), &mut budget);
            if thunks.is_empty() {
                thunks = self.thunks(field(16), &mut budget);
            }
            let library = library_name(name);
            for function in thunks.iter().filter_map(|thunk| self.function_name(&library, *thunk)) {
                if !std::mem::take(&mut first) {
                    hash.update(b",");
                }
                hash.update(without_extension(&library));
                hash.update(b".");
                hash.update(function.to_ascii_lowercase());
            }
            if budget == 0 {
                return;
            }
        }
        if !first {
            binary.imphash =
                Some(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
    }

    /// An import table up to its zero, or until `budget` entries were read.
    fn thunks(&self, address: u64, budget: &mut usize) -> Vec<u64> {
        let size = if self.wide { 8 } else { 4 };
        let mut thunks = Vec::new();
        let mut next = address;
        while next != 0 && *budget > 0 {
            *budget -= 1;
            let value = self.offset_of(next).and_then(|at| {
                if self.wide { self.bytes.u64(at) } else { self.bytes.u32(at).map(u64::from) }
            });
            match value {
                // pefile takes a table that leaves the file for none.
                None => return Vec::new(),
                Some(0) => break,
                Some(value) => thunks.push(value),
            }
            next += size;
        }
        thunks
    }

    /// The function that `thunk` names; `None` for what pefile leaves out.
    fn function_name(&self, library: &str, thunk: u64) -> Option<Vec<u8>> {
        let by_number = if self.wide { 1 << 63 } else { 1 << 31 };
        if thunk & by_number != 0 {
            let ordinal = u16::try_from(thunk & 0xffff).ok()?;
            let known =
                library.strip_suffix(".dll").and_then(|stem| ORDINAL_NAMES.get(&(stem, ordinal)));
            // pefile skips number 0 as if there were nothing.
            return (ordinal != 0).then(|| {
                known.map_or_else(
                    || format!("ord{ordinal}").into_bytes(),
                    |name| name.as_bytes().to_vec(),
                )
            });
        }
        let name = self.string_at(thunk.checked_add(2)?)?;
        let valid = |byte: &u8| byte.is_ascii_alphanumeric() || b"._?@$()<>".contains(byte);
        (!name.is_empty() && name.iter().all(valid)).then(|| name.to_vec())
    }
}

/// A library's name in lower case, as pefile reads it.
fn library_name(name: &[u8]) -> String {
    let valid =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'()-@^_`{}~+,.;=[]:\\/".contains(byte);
    if name.iter().all(valid) {
        String::from_utf8_lossy(name).to_ascii_lowercase()
    } else {
        "*invalid*".to_owned()
    }
}

fn without_extension(library: &str) -> &str {
    let stem = |extension| library.strip_suffix(extension);
    stem(".dll").or_else(|| stem(".ocx")).or_else(|| stem(".sys")).unwrap_or(library)
}

fn machine_name(number: u16) -> String {
    let name = match number {
        h::COFF_MACHINE_X86 => "x86",
        h::COFF_MACHINE_X86_64 => "x86_64",
        h::COFF_MACHINE_ARM | h::COFF_MACHINE_ARMNT => "arm",
        h::COFF_MACHINE_ARM64 => "aarch64",
        h::COFF_MACHINE_IA64 => "ia64",
        h::COFF_MACHINE_RISCV32 | h::COFF_MACHINE_RISCV64 => "riscv",
        h::COFF_MACHINE_EBC => "ebc",
        other => return format!("machine-{other}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    fn of(data: &[u8]) -> Binary {
        facts(data).unwrap().unwrap()
    }

    /// The hash is that of Python's `hashlib.md5` over
    /// `kernel32.exitprocess,kernel32.createfilea,ws2_32.socket,ws2_32.ord999,x.ord5,driver.a`, and pefile
    /// gives the same for this file.
    #[test]
    fn imports_hash_as_pefile_does() {
        let binary = of(&samples::pe(&[
            ("KERNEL32.dll", &["ExitProcess", "CreateFileA"]),
            ("WS2_32.dll", &["#23", "#999"]),
            ("x.OCX", &["#5"]),
            ("driver.sys", &["a"]),
        ]));
        assert_eq!(binary.imphash.as_deref(), Some("d8954accda852b005ea48e05e24bfc0d"));
        assert_eq!(binary.libraries, ["KERNEL32.dll", "WS2_32.dll", "x.OCX", "driver.sys"]);
    }

    #[test]
    fn headers_give_their_facts() {
        let mut data = samples::pe(&[("KERNEL32.dll", &["ExitProcess"])]);
        data.extend(b"overlay");
        let binary = of(&data);
        assert_eq!((binary.kind, binary.class), (BinaryKind::Pe, Some(32)));
        assert_eq!(
            (binary.machines, binary.object_type.as_deref()),
            (vec!["x86".to_owned()], Some("exe"))
        );
        assert_eq!(binary.compile_time.map(|time| time.seconds), Some(1_000_000_000));
        assert_eq!((binary.overlay, binary.signature_present), (Some(7), Some(false)));
        let section = &binary.sections[0];
        assert_eq!((&*section.name, section.size), (".idata", 512));
        assert!(section.entropy.is_some_and(|bits| bits > 0.0 && bits < 8.0));
    }

    #[test]
    fn a_certificate_table_counts_as_signed_and_not_as_overlay() {
        let mut data = samples::pe(&[]);
        let (end, directory) = (u32::try_from(data.len()).unwrap(), 0x58 + 96 + 4 * 8);
        data[directory..directory + 4].copy_from_slice(&end.to_le_bytes());
        data[directory + 4..directory + 8].copy_from_slice(&16_u32.to_le_bytes());
        data.extend([0; 20]);
        let binary = of(&data);
        assert_eq!((binary.overlay, binary.signature_present), (Some(4), Some(true)));
        assert_eq!(binary.imphash, None, "no imports, no hash");
    }

    #[test]
    fn packers_are_known_by_their_sections() {
        let mut data = samples::pe(&[]);
        let at = data.windows(6).position(|window| window == b".idata").unwrap();
        data[at..at + 6].copy_from_slice(b"UPX0\0\0");
        assert_eq!(of(&data).packers, ["upx"]);
    }

    #[test]
    fn dos_programs_have_no_facts_and_cut_headers_are_an_error() {
        assert_eq!(facts(b"MZ"), Ok(None));
        assert_eq!(facts(&[b"MZ".to_vec(), vec![0xff; 200]].concat()), Ok(None));
        let data = samples::pe(&[]);
        assert!(facts(&data[..0x50]).is_err());
        assert_eq!(of(&data[..0x58]).sections.len(), 0);
    }

    /// One table that every descriptor shares, without an end.
    #[test]
    fn imports_without_end_are_bounded_and_have_no_hash() {
        let mut data = samples::pe(&[("a.dll", &["#1"])]);
        let descriptor = data[0x200..0x214].to_vec();
        data.truncate(0x200);
        for _ in 0..10_000 {
            data.extend(&descriptor);
        }
        let size = u32::try_from(data.len()).unwrap().to_le_bytes();
        let header = data.windows(6).position(|window| window == b".idata").unwrap();
        data[header + 8..header + 12].copy_from_slice(&size);
        data[header + 16..header + 20].copy_from_slice(&size);
        assert_eq!(of(&data).imphash, None);
    }

    #[test]
    fn every_line_of_the_ordinals_is_read() {
        assert_eq!(ORDINAL_NAMES.len(), ORDINALS.lines().count());
        assert_eq!(ORDINAL_NAMES.get(&("oleaut32", 2)), Some(&"SysAllocString"));
    }
}
