//! Facts about executables: ELF, PE and Mach-O.
//!
//! Purpose: what an investigator asks of an executable before running anything on it. Touches the bytes it
//! is given. Never executes, resolves or loads what they name, and never judges.
//!
//! The bytes are hostile. goblin names the structures and constants and reads the ELF tables; its
//! whole-file parsers are not used: they build every symbol, string and resource table, which takes many
//! times the memory of the file (and of a PE whose import descriptors share one table, the square), and
//! they give up as a whole where one table is malformed. Here each table is read by itself, within the
//! file and within a fixed count, and what cannot be read is absent.

mod bytes;
mod elf;
mod macho;
mod pe;
#[cfg(test)]
pub(crate) mod samples;

use cleanroom_contract::{Binary, BinaryKind, printable};

/// Libraries, search-path entries and architectures kept of one executable.
const LIST_LIMIT: usize = 256;
/// Sections kept of one executable.
const SECTION_LIMIT: usize = 96;
/// Characters kept of one string.
const TEXT_LIMIT: usize = 256;

/// The facts about `data`, a whole file of `format` (a name of `inspect::format`).
///
/// `Ok(None)` where the format has no facts, which includes DOS programs. The caller has to survive a
/// panic of this all the same.
///
/// # Errors
/// The reason, for people, where it says that it is an executable and nothing can be read of it.
pub(crate) fn facts(data: &[u8], format: &str) -> Result<Option<Box<Binary>>, String> {
    match format {
        "ELF" => elf::facts(data).map(|binary| Some(Box::new(binary))),
        "EXE" => pe::facts(data).map(|binary| binary.map(Box::new)),
        "MACHO" => macho::facts(data).map(|binary| Some(Box::new(binary))),
        _ => Ok(None),
    }
}

/// Facts of which nothing is known yet.
fn unknown(kind: BinaryKind) -> Binary {
    Binary {
        kind,
        class: None,
        machines: Vec::new(),
        object_type: None,
        interpreter: None,
        libraries: Vec::new(),
        rpath: Vec::new(),
        runpath: Vec::new(),
        build_id: None,
        stripped: None,
        statically_linked: None,
        writable_code_segments: None,
        sectionless: None,
        overlay: None,
        packers: Vec::new(),
        imphash: None,
        compile_time: None,
        sections: Vec::new(),
        signature_present: None,
    }
}

/// `raw` as printable text of at most `limit` characters.
fn text(raw: &[u8], limit: usize) -> String {
    // A character is at most four bytes; the rest need not be looked at.
    let head = raw.get(..limit.saturating_mul(4)).unwrap_or(raw);
    printable(&String::from_utf8_lossy(head)).chars().take(limit).collect()
}

/// Adds to a list unless it is full or has it already.
fn push_new(list: &mut Vec<String>, entry: String) {
    if list.len() < LIST_LIMIT && !list.contains(&entry) {
        list.push(entry);
    }
}

/// The packer that names its sections so, from the packers' own output.
fn packer_of_section(name: &[u8]) -> Option<&'static str> {
    const NAMES: &[(&[u8], &str)] = &[
        (b"UPX", "upx"),
        (b".UPX", "upx"),
        (b".aspack", "aspack"),
        (b".adata", "aspack"),
        (b".ASPack", "aspack"),
        (b".MPRESS", "mpress"),
        (b".petite", "petite"),
        (b"PEC2", "pecompact"),
        (b"pec1", "pecompact"),
        (b"pec2", "pecompact"),
        (b".nsp", "nspack"),
        (b"nsp0", "nspack"),
        (b".vmp", "vmprotect"),
        (b".themida", "themida"),
        (b"Themida", "themida"),
        (b".winlice", "themida"),
        (b".enigma", "enigma"),
        (b"FSG!", "fsg"),
        (b"MEW", "mew"),
        (b".kkrunchy", "kkrunchy"),
        (b"kkrunchy", "kkrunchy"),
        (b".yP", "y0da"),
        (b".y0da", "y0da"),
    ];
    NAMES.iter().find(|(start, _)| name.starts_with(start)).map(|(_, packer)| *packer)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn other_formats_have_no_facts() {
        assert_eq!(facts(b"\x7fELF", "TEXT"), Ok(None));
    }

    #[test]
    fn text_is_printable_and_short() {
        assert_eq!(text(b"a\x1b[0m\xff", 256), "a\\u{1b}[0m\u{fffd}");
        assert_eq!(text(&[b'\n'; 4000], 256).chars().count(), 256);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        /// Any bytes, and well-formed executables with some bytes changed or cut.
        #[test]
        fn no_bytes_bring_it_down(
            which in 0..5_usize,
            noise in proptest::collection::vec(any::<u8>(), 0..512),
            hits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut data = match which {
                0 => samples::Elf::default().build(),
                1 => samples::Elf { big_endian: true, class: 32, ..samples::Elf::default() }.build(),
                2 => samples::pe(&[("KERNEL32.dll", &["ExitProcess", "#7"])]),
                3 => samples::fat(&[samples::macho(&["/usr/lib/libSystem.B.dylib"])]),
                _ => noise,
            };
            for (at, value) in hits {
                if !data.is_empty() {
                    let at = at.index(data.len());
                    data[at] = value;
                }
            }
            data.truncate(cut.index(data.len() + 1));
            for format in ["ELF", "EXE", "MACHO"] {
                if let Ok(Some(binary)) = facts(&data, format) {
                    prop_assert!(binary.libraries.len() <= LIST_LIMIT);
                    prop_assert!(binary.sections.len() <= SECTION_LIMIT);
                    prop_assert!(binary.overlay.unwrap_or(0) <= data.len() as u64);
                }
            }
        }
    }
}
