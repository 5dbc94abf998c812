//! Small executables built byte by byte for tests.

/// What an ELF sample has. All of it is one loaded segment at address 0, so that addresses are offsets.
#[derive(Clone, Copy)]
pub(crate) struct Elf {
    pub(crate) class: u8,
    pub(crate) big_endian: bool,
    /// `e_type`.
    pub(crate) object_type: u16,
    pub(crate) interpreter: &'static str,
    pub(crate) needed: &'static [&'static str],
    pub(crate) runpath: &'static str,
    pub(crate) writable_code: bool,
    pub(crate) sections: bool,
    pub(crate) section_name: &'static str,
    pub(crate) symbols: bool,
    pub(crate) debug_only: bool,
}

impl Default for Elf {
    fn default() -> Self {
        Self {
            class: 64,
            big_endian: false,
            object_type: 3,
            interpreter: "/lib64/ld-linux-x86-64.so.2",
            needed: &["libc.so.6", "libm.so.6"],
            runpath: "$ORIGIN/../lib::/opt/x",
            writable_code: false,
            sections: true,
            section_name: ".text",
            symbols: false,
            debug_only: false,
        }
    }
}

/// Bytes that grow, with numbers of the sample's size and order.
struct Writer {
    out: Vec<u8>,
    big_endian: bool,
    wide: bool,
}

impl Writer {
    fn number(&mut self, value: u64, size: usize) {
        let bytes = value.to_be_bytes();
        let tail = &bytes[8 - size..];
        if self.big_endian {
            self.out.extend(tail);
        } else {
            self.out.extend(tail.iter().rev());
        }
    }

    fn half(&mut self, value: u64) {
        self.number(value, 2);
    }

    fn word(&mut self, value: u64) {
        self.number(value, 4);
    }

    /// A number as wide as the class.
    fn wide(&mut self, value: u64) {
        self.number(value, if self.wide { 8 } else { 4 });
    }

    fn segment(&mut self, kind: u64, flags: u64, offset: u64, size: u64) {
        self.word(kind);
        if self.wide {
            self.word(flags);
        }
        for value in [offset, offset, offset, size, size] {
            self.wide(value);
        }
        if !self.wide {
            self.word(flags);
        }
        self.wide(4);
    }

    fn section(&mut self, name: u64, kind: u64, flags: u64, (offset, size): (u64, u64)) {
        self.word(name);
        self.word(kind);
        for value in [flags, offset, offset, size] {
            self.wide(value);
        }
        self.word(0);
        self.word(0);
        self.wide(1);
        self.wide(0);
    }
}

impl Elf {
    pub(crate) fn build(self) -> Vec<u8> {
        let wide = self.class == 64;
        let writer = || Writer { out: Vec::new(), big_endian: self.big_endian, wide };
        let (header_size, segment_size, section_size) =
            if wide { (64, 56, 64) } else { (52, 32, 40) };

        let mut strings = b"\0".to_vec();
        let mut string = |text: &str| {
            let at = strings.len() as u64;
            strings.extend(text.as_bytes());
            strings.push(0);
            at
        };
        let needed: Vec<u64> = self.needed.iter().map(|name| string(name)).collect();
        let runpath = string(self.runpath);

        let mut note = writer();
        for value in [4, 6, 3] {
            note.word(value);
        }
        note.out.extend(b"GNU\0\x00\x11\x22\x33\xaa\xbb\0\0");

        let interpreter = [self.interpreter.as_bytes(), b"\0"].concat();
        let segments = 4;
        let interpreter_at = header_size + segments * segment_size;
        let note_at = (interpreter_at + interpreter.len() as u64).next_multiple_of(4);
        let strings_at = note_at + note.out.len() as u64;
        let dynamic_at = (strings_at + strings.len() as u64).next_multiple_of(8);
        let mut dynamic = writer();
        let entries = needed.iter().map(|at| (1, *at)).chain([
            (29, runpath),
            (5, strings_at),
            (10, strings.len() as u64),
            (0, 0),
        ]);
        for (tag, value) in entries {
            dynamic.wide(tag);
            dynamic.wide(value);
        }
        let names = ["\0", self.section_name, "\0.symtab\0.shstrtab\0"].concat();
        let names_at = dynamic_at + dynamic.out.len() as u64;
        let sections_at = (names_at + names.len() as u64).next_multiple_of(8);

        let mut file = writer();
        file.out.extend([
            0x7f,
            b'E',
            b'L',
            b'F',
            if wide { 2 } else { 1 },
            if self.big_endian { 2 } else { 1 },
            1,
        ]);
        file.out.resize(16, 0);
        file.half(u64::from(self.object_type));
        file.half(62);
        file.word(1);
        file.wide(0);
        file.wide(header_size);
        file.wide(if self.sections { sections_at } else { 0 });
        file.word(0);
        let count = if self.sections { 4 } else { 0 };
        for value in [
            header_size,
            segment_size,
            segments,
            section_size,
            count,
            if self.sections { 3 } else { 0 },
        ] {
            file.half(value);
        }

        let end = names_at + names.len() as u64;
        file.segment(1, if self.writable_code { 7 } else { 5 }, 0, end);
        // Types that are skipped stand in for what the sample lacks.
        file.segment(
            if self.interpreter.is_empty() { 0 } else { 3 },
            4,
            interpreter_at,
            interpreter.len() as u64,
        );
        file.segment(4, 4, note_at, note.out.len() as u64);
        file.segment(2, 6, dynamic_at, dynamic.out.len() as u64);
        for (at, part) in [
            (interpreter_at, &interpreter[..]),
            (note_at, &note.out),
            (strings_at, &strings),
            (dynamic_at, &dynamic.out),
            (names_at, names.as_bytes()),
        ] {
            file.out.resize(usize::try_from(at).unwrap(), 0);
            file.out.extend(part);
        }
        if self.sections {
            file.out.resize(usize::try_from(sections_at).unwrap(), 0);
            let symtab = 2 + self.section_name.len() as u64;
            file.section(0, 0, 0, (0, 0));
            file.section(1, if self.debug_only { 8 } else { 1 }, 6, (note_at, 8));
            file.section(symtab, if self.symbols { 2 } else { 1 }, 0, (note_at, 0));
            file.section(symtab + 8, 3, 0, (names_at, names.len() as u64));
        }
        file.out
    }
}

/// A PE32 with one section that holds the import directory: libraries, and for each the functions; `#7`
/// is ordinal 7.
pub(crate) fn pe(imports: &[(&str, &[&str])]) -> Vec<u8> {
    const SECTION_AT: usize = 0x200;
    const SECTION_RVA: usize = 0x1000;
    let little = |value: usize| u32::try_from(value).unwrap().to_le_bytes();
    let mut descriptors = Vec::new();
    let mut rest = Vec::new();
    let rest_rva = SECTION_RVA + 20 * (imports.len() + 1);
    for (library, functions) in imports {
        let mut thunks = Vec::new();
        for function in *functions {
            if let Some(ordinal) = function.strip_prefix('#') {
                thunks.extend((0x8000_0000 | ordinal.parse::<u32>().unwrap()).to_le_bytes());
            } else {
                thunks.extend(little(rest_rva + rest.len()));
                rest.extend([0, 0]);
                rest.extend(function.as_bytes());
                rest.push(0);
            }
        }
        thunks.extend([0; 4]);
        let name = rest_rva + rest.len();
        rest.extend(library.as_bytes());
        rest.push(0);
        let table = rest_rva + rest.len();
        rest.extend(thunks);
        for value in [table, 0, 0, name, table] {
            descriptors.extend(little(value));
        }
    }
    descriptors.extend([0; 20]);
    let mut section = [descriptors, rest].concat();
    section.resize(section.len().next_multiple_of(0x200), 0);

    let mut file = b"MZ".to_vec();
    file.resize(0x3c, 0);
    file.extend(little(0x40));
    file.extend(b"PE\0\0\x4c\x01\x01\0");
    file.extend(little(1_000_000_000));
    file.extend([0; 8]);
    file.extend([0xe0, 0, 0x02, 0x01]);
    let optional = file.len();
    file.extend([0x0b, 0x01]);
    file.resize(optional + 28, 0);
    for value in [0x40_0000, 0x1000, 0x200] {
        file.extend(little(value));
    }
    file.resize(optional + 92, 0);
    file.extend(little(16));
    file.resize(optional + 104, 0);
    file.extend(little(SECTION_RVA));
    file.extend(little(section.len()));
    file.resize(optional + 0xe0, 0);
    file.extend(b".idata\0\0");
    for value in [section.len(), SECTION_RVA, section.len(), SECTION_AT, 0, 0, 0, 0x4000_0040] {
        file.extend(little(value));
    }
    file.resize(SECTION_AT, 0);
    file.extend(section);
    file
}

/// A 64-bit Mach-O program for ARM64 that loads `libraries`.
pub(crate) fn macho(libraries: &[&str]) -> Vec<u8> {
    let mut commands = Vec::new();
    for library in libraries {
        let size = u32::try_from((24 + library.len() + 1).next_multiple_of(8)).unwrap();
        let start = commands.len();
        for value in [0xc, size, 24, 0, 0, 0] {
            commands.extend(value.to_le_bytes());
        }
        commands.extend(library.as_bytes());
        commands.resize(start + size as usize, 0);
    }
    let mut file = Vec::new();
    let count = u32::try_from(libraries.len()).unwrap();
    for value in
        [0xfeed_facf, 0x0100_000c, 0, 2, count, u32::try_from(commands.len()).unwrap(), 0, 0]
    {
        file.extend(u32::to_le_bytes(value));
    }
    file.extend(commands);
    file
}

/// A fat Mach-O of `parts`, all said to be for ARM64.
pub(crate) fn fat(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut file = vec![0xca, 0xfe, 0xba, 0xbe];
    file.extend(u32::try_from(parts.len()).unwrap().to_be_bytes());
    let mut at = 8 + 20 * parts.len();
    for part in parts {
        for value in [0x0100_000c, 0, at, part.len(), 0] {
            file.extend(u32::try_from(value).unwrap().to_be_bytes());
        }
        at += part.len();
    }
    file.extend(parts.concat());
    file
}
