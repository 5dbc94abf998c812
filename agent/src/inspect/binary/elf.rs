//! ELF (System V ABI, generic part; `elf(5)`).
//!
//! Purpose: see the parent module. The program headers decide what runs, so they come first; section
//! headers may be absent, cut off or lies, and then only what rests on them is missing.

use cleanroom_contract::{Binary, BinaryKind};
use goblin::{
    container::{Container, Ctx},
    elf::{
        Elf, Header, ProgramHeader, SectionHeader, dynamic, header as h, note, program_header as p,
        section_header as s,
    },
};

use super::{
    LIST_LIMIT, TEXT_LIMIT, bytes::Bytes, bytes::contains, packer_of_section, push_new, text,
    unknown,
};

/// Entries of the dynamic section that are read; the largest libraries have some hundreds.
const DYNAMIC_LIMIT: u64 = 16_384;
/// Bytes of one dynamic string that are read.
const STRING_LIMIT: usize = 4096;
/// Sections whose names are read.
const NAMED_SECTIONS: usize = 4096;
/// Notes that are read of one segment or section.
const NOTE_LIMIT: usize = 64;
/// UPX writes its mark into the loader information behind the program headers.
const UPX_HEAD: u64 = 1024;
/// And into the pack header at the end, behind the stub of some KiB.
const UPX_TAIL: u64 = 65_536;

/// The tables of one file.
struct Image<'a> {
    bytes: Bytes<'a>,
    ctx: Ctx,
    header: Header,
    segments: Vec<ProgramHeader>,
    sections: Vec<SectionHeader>,
}

/// The facts of an ELF file.
///
/// # Errors
/// Where not even the ELF header can be read.
pub(super) fn facts(data: &[u8]) -> Result<Binary, String> {
    let image = Image::read(data)?;
    let mut binary = unknown(BinaryKind::Elf);
    binary.class = Some(if image.ctx.container == Container::Big { 64 } else { 32 });
    binary.machines = vec![machine(image.header.e_machine)];
    binary.object_type = Some(match image.header.e_type {
        h::ET_REL => "rel".to_owned(),
        h::ET_EXEC => "exec".to_owned(),
        h::ET_DYN => "dyn".to_owned(),
        h::ET_CORE => "core".to_owned(),
        other => format!("type-{other}"),
    });
    let loads = image.segments.iter().filter(|segment| segment.p_type == p::PT_LOAD);
    let writable_code = loads.filter(|segment| segment.is_write() && segment.is_executable());
    binary.writable_code_segments = Some(u32::try_from(writable_code.count()).unwrap_or(u32::MAX));
    binary.sectionless = Some(image.sections.is_empty());
    binary.stripped = Some(!image.sections.iter().any(|section| section.sh_type == s::SHT_SYMTAB));
    binary.overlay = Some(image.bytes.behind(image.accounted_for()));
    binary.build_id = image.build_id();
    // A file of debug symbols keeps the headers of the program that it belongs to, but not the content.
    if !image.is_debug_only() {
        binary.interpreter = image.interpreter().map(|raw| text(raw, TEXT_LIMIT));
        image.read_dynamic(&mut binary);
        if matches!(image.header.e_type, h::ET_EXEC | h::ET_DYN) {
            binary.statically_linked =
                Some(binary.interpreter.is_none() && binary.libraries.is_empty());
        }
    }
    binary.packers = image.packers();
    Ok(binary)
}

impl<'a> Image<'a> {
    fn read(data: &'a [u8]) -> Result<Self, String> {
        let header = Elf::parse_header(data).map_err(|error| format!("ELF header: {error}"))?;
        let container = header.container().map_err(|error| format!("ELF class: {error}"))?;
        let endian = header.endianness().map_err(|error| format!("ELF byte order: {error}"))?;
        let ctx = Ctx::new(container, endian);
        let bytes = Bytes { data, endian };
        let mut image = Self { bytes, ctx, header, segments: Vec::new(), sections: Vec::new() };
        image.segments = image.read_segments();
        image.sections = image.read_sections();
        Ok(image)
    }

    /// As many program headers as are in the file.
    fn read_segments(&self) -> Vec<ProgramHeader> {
        let size = ProgramHeader::size(self.ctx);
        let count = self.there(self.header.e_phoff, size).min(usize::from(self.header.e_phnum));
        let offset = usize::try_from(self.header.e_phoff).unwrap_or(usize::MAX);
        ProgramHeader::parse(self.bytes.data, offset, count, self.ctx).unwrap_or_default()
    }

    /// As many section headers as are in the file. A number that does not fit `e_shnum` stands in the first
    /// header's size, `e_shnum` being 0 then.
    fn read_sections(&self) -> Vec<SectionHeader> {
        let size = SectionHeader::size(self.ctx);
        let there = self.there(self.header.e_shoff, size);
        let offset = usize::try_from(self.header.e_shoff).unwrap_or(usize::MAX);
        if self.header.e_shoff == 0 || there == 0 {
            return Vec::new();
        }
        let parse = |count| {
            SectionHeader::parse(self.bytes.data, offset, count, self.ctx).unwrap_or_default()
        };
        let count = match self.header.e_shnum {
            0 => {
                parse(1).first().and_then(|first| usize::try_from(first.sh_size).ok()).unwrap_or(0)
            }
            count => usize::from(count),
        };
        // To parse 0 would mean: as many as the first says.
        if count == 0 { Vec::new() } else { parse(count.min(there)) }
    }

    /// How many entries of `size` there is room for from `offset` to the end of the file.
    fn there(&self, offset: u64, size: usize) -> usize {
        usize::try_from(self.bytes.behind(offset)).unwrap_or(0).checked_div(size).unwrap_or(0)
    }

    /// The first byte that neither a header nor what a header describes covers.
    fn accounted_for(&self) -> u64 {
        let table = |offset: u64, count: usize, size: usize| {
            if count == 0 {
                0
            } else {
                offset.saturating_add((count as u64).saturating_mul(size as u64))
            }
        };
        let segments =
            self.segments.iter().map(|segment| segment.p_offset.saturating_add(segment.p_filesz));
        let sections = self.sections.iter().filter(|section| section.sh_type != s::SHT_NOBITS);
        let sections = sections.map(|section| section.sh_offset.saturating_add(section.sh_size));
        let ends = [
            u64::from(self.header.e_ehsize),
            table(self.header.e_phoff, self.segments.len(), ProgramHeader::size(self.ctx)),
            table(self.header.e_shoff, self.sections.len(), SectionHeader::size(self.ctx)),
        ];
        ends.into_iter().chain(segments).chain(sections).max().unwrap_or(0)
    }

    /// Code sections without content mark what `objcopy --only-keep-debug` leaves.
    fn is_debug_only(&self) -> bool {
        self.sections.iter().any(|section| {
            section.sh_type == s::SHT_NOBITS
                && section.sh_size > 0
                && section.sh_flags & u64::from(s::SHF_EXECINSTR) != 0
        })
    }

    fn segment(&self, kind: u32) -> Option<&ProgramHeader> {
        self.segments.iter().find(|segment| segment.p_type == kind)
    }

    fn interpreter(&self) -> Option<&'a [u8]> {
        let segment = self.segment(p::PT_INTERP)?;
        let raw = self.bytes.up_to(segment.p_offset, segment.p_filesz.min(STRING_LIMIT as u64));
        raw.split(|byte| *byte == 0).next().filter(|path| !path.is_empty())
    }

    /// Where in the file the byte lies that is loaded at `address`.
    fn offset_of(&self, address: u64) -> Option<u64> {
        let loads = self.segments.iter().filter(|segment| segment.p_type == p::PT_LOAD);
        loads.into_iter().find_map(|segment| {
            let within = address.checked_sub(segment.p_vaddr)?;
            if within < segment.p_filesz { segment.p_offset.checked_add(within) } else { None }
        })
    }

    /// The dynamic section's tags and values up to `DT_NULL`. The loader finds it by address, so the offset
    /// counts only where no loaded segment holds the address.
    fn dynamic(&self) -> Vec<(u64, u64)> {
        let Some(segment) = self.segment(p::PT_DYNAMIC) else { return Vec::new() };
        let start = self.offset_of(segment.p_vaddr).unwrap_or(segment.p_offset);
        let word: u64 = if self.ctx.container == Container::Big { 8 } else { 4 };
        let number = |at: u64| match word {
            8 => self.bytes.u64(at),
            _ => self.bytes.u32(at).map(u64::from),
        };
        let entry = |index: u64| {
            let at = start.checked_add(index.checked_mul(word * 2)?)?;
            Some((number(at)?, number(at.checked_add(word)?)?))
        };
        (0..DYNAMIC_LIMIT.min(segment.p_filesz / (word * 2)))
            .map_while(entry)
            .take_while(|(tag, _)| *tag != dynamic::DT_NULL)
            .collect()
    }

    /// Needed libraries and search paths.
    fn read_dynamic(&self, binary: &mut Binary) {
        let entries = self.dynamic();
        let value =
            |wanted| entries.iter().find(|(tag, _)| *tag == wanted).map(|(_, value)| *value);
        let Some(table) = value(dynamic::DT_STRTAB).and_then(|address| self.offset_of(address))
        else {
            return;
        };
        let strings = Bytes {
            data: self.bytes.up_to(table, value(dynamic::DT_STRSZ).unwrap_or(u64::MAX)),
            ..self.bytes
        };
        for (tag, value) in &entries {
            let Some(raw) = strings.string(*value, STRING_LIMIT) else { continue };
            match *tag {
                dynamic::DT_NEEDED => push_new(&mut binary.libraries, text(raw, TEXT_LIMIT)),
                dynamic::DT_RPATH => push_paths(&mut binary.rpath, raw),
                dynamic::DT_RUNPATH => push_paths(&mut binary.runpath, raw),
                _ => {}
            }
        }
    }

    /// The GNU build id, from note segments or, in objects, note sections.
    fn build_id(&self) -> Option<String> {
        let segments = self.segments.iter().filter(|segment| segment.p_type == p::PT_NOTE);
        let segments =
            segments.map(|segment| (segment.p_offset, segment.p_filesz, segment.p_align));
        let sections = self.sections.iter().filter(|section| section.sh_type == s::SHT_NOTE);
        let sections =
            sections.map(|section| (section.sh_offset, section.sh_size, section.sh_addralign));
        segments.chain(sections).take(NOTE_LIMIT).find_map(|(offset, size, align)| {
            let notes = Bytes { data: self.bytes.up_to(offset, size), ..self.bytes };
            build_id_in(notes, if align == 8 { 8 } else { 4 })
        })
    }

    fn packers(&self) -> Vec<String> {
        let mut packers = Vec::new();
        for name in self.section_names() {
            if let Some(packer) = packer_of_section(name) {
                push_new(&mut packers, packer.to_owned());
            }
        }
        let head = self.bytes.up_to(0, UPX_HEAD);
        let tail = self.bytes.up_to(self.bytes.behind(UPX_TAIL), UPX_TAIL);
        // UPX packs what is loaded. A program that has its sections may well hold UPX's texts as data, and
        // an object that is to become one: upx itself does.
        let upx = !self.segments.is_empty()
            && (contains(head, b"UPX!")
                || self.sections.is_empty()
                    && (contains(tail, b"UPX!")
                        || contains(tail, b"$Info: This file is packed with the UPX")));
        if upx {
            push_new(&mut packers, "upx".to_owned());
        }
        packers
    }

    fn section_names(&self) -> impl Iterator<Item = &'a [u8]> {
        let index = match self.header.e_shstrndx {
            // SHN_XINDEX: the number stands in the first header.
            0xffff => self.sections.first().map_or(0, |first| u64::from(first.sh_link)),
            index => u64::from(index),
        };
        let table = usize::try_from(index).ok().and_then(|index| self.sections.get(index));
        let bytes = self.bytes;
        let names = table.map_or(&[][..], |table| bytes.up_to(table.sh_offset, table.sh_size));
        let names = Bytes { data: names, ..bytes };
        let starts: Vec<_> =
            self.sections.iter().take(NAMED_SECTIONS).map(|section| section.sh_name).collect();
        starts.into_iter().filter_map(move |start| names.string(u64::try_from(start).ok()?, 64))
    }
}

/// The entries of a search path. The dynamic linker ignores one that is empty as a whole; an empty entry
/// of another stands for the working directory (glibc `elf/dl-load.c`).
fn push_paths(list: &mut Vec<String>, raw: &[u8]) {
    if !raw.is_empty() {
        let entries = raw.split(|byte| *byte == b':').take(LIST_LIMIT);
        list.extend(entries.map(|entry| text(entry, TEXT_LIMIT)));
        list.truncate(LIST_LIMIT);
    }
}

/// The build id among `notes`: length of name, length of content, type, name, content, each padded.
fn build_id_in(notes: Bytes<'_>, align: u64) -> Option<String> {
    let mut at = 0;
    for _ in 0..NOTE_LIMIT {
        let name_size = u64::from(notes.u32(at)?);
        let size = u64::from(notes.u32(at + 4)?);
        let kind = notes.u32(at + 8)?;
        let name = at.checked_add(12)?;
        let content = name.checked_add(name_size)?.checked_next_multiple_of(align)?;
        if kind == note::NT_GNU_BUILD_ID
            && (1..=64).contains(&size)
            && notes.slice(name, name_size)? == b"GNU\0"
        {
            let id = notes.slice(content, size)?;
            return Some(id.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        at = content.checked_add(size)?.checked_next_multiple_of(align)?;
    }
    None
}

fn machine(number: u16) -> String {
    let name = match number {
        h::EM_386 => "x86",
        h::EM_X86_64 => "x86_64",
        h::EM_ARM => "arm",
        h::EM_AARCH64 => "aarch64",
        h::EM_RISCV => "riscv",
        h::EM_MIPS => "mips",
        h::EM_PPC => "ppc",
        h::EM_PPC64 => "ppc64",
        h::EM_S390 => "s390",
        h::EM_SPARC => "sparc",
        h::EM_SPARCV9 => "sparc64",
        h::EM_68K => "m68k",
        h::EM_SH => "sh",
        h::EM_IA_64 => "ia64",
        h::EM_BPF => "bpf",
        258 => "loongarch",
        other => return format!("machine-{other}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::samples::Elf as Sample;
    use super::*;

    #[test]
    fn a_dynamic_program_gives_all_facts() {
        for (class, big_endian) in [(64, false), (64, true), (32, false), (32, true)] {
            let binary = facts(&Sample { class, big_endian, ..Sample::default() }.build()).unwrap();
            assert_eq!(binary.class, Some(class));
            assert_eq!(binary.machines, ["x86_64"]);
            assert_eq!(binary.object_type.as_deref(), Some("dyn"));
            assert_eq!(binary.interpreter.as_deref(), Some("/lib64/ld-linux-x86-64.so.2"));
            assert_eq!(binary.libraries, ["libc.so.6", "libm.so.6"]);
            assert_eq!(binary.runpath, ["$ORIGIN/../lib", "", "/opt/x"]);
            assert_eq!(binary.rpath, Vec::<String>::new());
            assert_eq!(binary.build_id.as_deref(), Some("00112233aabb"));
            assert_eq!((binary.stripped, binary.statically_linked), (Some(true), Some(false)));
            assert_eq!((binary.sectionless, binary.writable_code_segments), (Some(false), Some(0)));
            assert_eq!((binary.overlay, binary.packers.len()), (Some(0), 0));
        }
    }

    #[test]
    fn static_programs_have_neither_interpreter_nor_libraries() {
        let plain = Sample {
            interpreter: "",
            needed: &[],
            runpath: "",
            object_type: 2,
            ..Sample::default()
        };
        let pie = Sample { object_type: 3, ..plain };
        for sample in [plain, pie] {
            let binary = facts(&sample.build()).unwrap();
            assert_eq!((binary.statically_linked, binary.interpreter), (Some(true), None));
            assert_eq!(binary.runpath.len(), 0, "an empty search path is none");
        }
    }

    #[test]
    fn section_headers_that_are_missing_or_beyond_the_end_make_it_sectionless() {
        let without = Sample { sections: false, ..Sample::default() }.build();
        let whole = Sample::default().build();
        // e_shoff of a 64-bit header.
        let mut beyond = whole.clone();
        beyond[0x28..0x30].copy_from_slice(&u64::MAX.to_le_bytes());
        let mut cut = whole.clone();
        cut.truncate(
            usize::try_from(u64::from_le_bytes(whole[0x28..0x30].try_into().unwrap())).unwrap(),
        );
        for data in [without, beyond, cut] {
            let binary = facts(&data).unwrap();
            assert_eq!((binary.sectionless, binary.stripped), (Some(true), Some(true)));
            assert_eq!(binary.libraries, ["libc.so.6", "libm.so.6"]);
        }
    }

    #[test]
    fn a_header_alone_is_enough_for_its_facts_and_less_is_an_error() {
        let data = Sample::default().build();
        let binary = facts(&data[..64]).unwrap();
        assert_eq!((binary.sectionless, binary.libraries.len()), (Some(true), 0));
        assert!(facts(&data[..63]).unwrap_err().starts_with("ELF header"));
        assert!(facts(b"").is_err());
    }

    #[test]
    fn writable_code_symbols_and_bytes_behind_are_counted() {
        let mut data = Sample { writable_code: true, symbols: true, ..Sample::default() }.build();
        data.extend(b"appended payload");
        let binary = facts(&data).unwrap();
        assert_eq!((binary.writable_code_segments, binary.stripped), (Some(1), Some(false)));
        assert_eq!(binary.overlay, Some(16));
    }

    #[test]
    fn upx_is_known_by_its_mark_and_by_its_stub() {
        let mut marked = Sample { sections: false, ..Sample::default() }.build();
        let stub =
            [&marked[..], b"$Info: This file is packed with the UPX executable packer"].concat();
        let data = [&Sample::default().build()[..], &[0; 2000], b"UPX!"].concat();
        marked.extend(b"UPX!");
        assert_eq!(facts(&marked).unwrap().packers, ["upx"]);
        assert_eq!(facts(&stub).unwrap().packers, ["upx"]);
        assert_eq!(facts(&data).unwrap().packers.len(), 0, "text in a program with sections");
        let mut object = Sample { object_type: 1, ..Sample::default() }.build();
        object[0x38] = 0;
        object[0x100..0x104].copy_from_slice(b"UPX!");
        assert_eq!(facts(&object).unwrap().packers.len(), 0, "text in an object");
        let named = Sample { section_name: "UPX1", ..Sample::default() }.build();
        assert_eq!(facts(&named).unwrap().packers, ["upx"]);
    }

    #[test]
    fn a_file_of_debug_symbols_has_no_dynamic_facts() {
        let binary = facts(&Sample { debug_only: true, ..Sample::default() }.build()).unwrap();
        assert_eq!(
            (binary.interpreter, binary.libraries.len(), binary.statically_linked),
            (None, 0, None)
        );
        assert_eq!(binary.build_id.as_deref(), Some("00112233aabb"));
    }

    #[test]
    fn counts_beyond_the_file_read_what_is_there() {
        let mut data = Sample::default().build();
        data[0x38..0x3a].copy_from_slice(&u16::MAX.to_le_bytes());
        data[0x3c..0x3e].copy_from_slice(&u16::MAX.to_le_bytes());
        assert_eq!(facts(&data).unwrap().libraries.len(), 2);
    }
}
