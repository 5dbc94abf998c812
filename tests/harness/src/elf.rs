//! Tiny ELF programs, built byte by byte, that show what the agent's binary facts look for and do
//! nothing but `exit(0)`.
//!
//! Layout from the ELF specification (Tool Interface Standard 1.2) and its AMD64 supplement. Pure.

/// `exit(0)` on x86-64 Linux: `xor edi, edi; mov eax, 60; syscall`.
const EXIT: [u8; 9] = [0x31, 0xff, 0xb8, 0x3c, 0, 0, 0, 0x0f, 0x05];

/// The address the segment is loaded at, that of `ld`'s default for x86-64.
const BASE: u64 = 0x40_0000;

/// Sizes of the file header, a program header and a section header.
const EHDR: u16 = 64;
const PHDR: u16 = 56;
const SHDR: u16 = 64;

const PF_X: u32 = 1;
const PF_W: u32 = 2;
const PF_R: u32 = 4;

/// What the program looks like. The default is unremarkable: static, with sections, read and
/// execute only.
#[derive(Clone, Debug, Default)]
pub struct Elf {
    /// No section header table, as packers and shellcode generators leave it.
    pub section_less: bool,
    /// The one segment is writable and executable.
    pub writable_code: bool,
    /// Carries the mark `UPX!` where UPX writes its own.
    pub upx: bool,
    /// `PT_INTERP`: the dynamic linker asked for. The kernel refuses to start the program when
    /// this names no file.
    pub interpreter: Option<String>,
    /// Bytes of pseudo-random data in the segment, which is how packed content looks.
    pub noise: u32,
    /// Bytes after everything that the headers describe.
    pub overlay: Vec<u8>,
}

impl Elf {
    /// The file, a 64-bit little-endian executable for x86-64.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let interpreter = self.interpreter.as_ref().map(|path| {
            let mut bytes = path.clone().into_bytes();
            bytes.push(0);
            bytes
        });
        let headers: u16 = if interpreter.is_some() { 2 } else { 1 };
        let code_at = u64::from(EHDR + headers * PHDR);

        let mut body = EXIT.to_vec();
        let code_len = length(&body);
        if self.upx {
            // UPX's l_info: a checksum, then the magic, then version fields.
            body.extend_from_slice(b"\0\0\0\0UPX!\x0d\x16\0\0");
        }
        body.extend(noise(self.noise));
        let interpreter_at = code_at + length(&body);
        if let Some(path) = &interpreter {
            body.extend_from_slice(path);
        }
        let loaded = code_at + length(&body);

        let sections = if self.section_less { Vec::new() } else { sections(code_at, code_len) };
        let names = if self.section_less { &b""[..] } else { NAMES };
        // Names first, then the table, which must be aligned to 8.
        let names_at = loaded;
        let table_at = (names_at + length(names)).next_multiple_of(8);

        let mut file = Vec::new();
        file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        put16(&mut file, 2); // ET_EXEC
        put16(&mut file, 62); // EM_X86_64
        put32(&mut file, 1); // EV_CURRENT
        put64(&mut file, BASE + code_at);
        put64(&mut file, u64::from(EHDR));
        put64(&mut file, if self.section_less { 0 } else { table_at });
        put32(&mut file, 0);
        for value in [EHDR, PHDR, headers] {
            put16(&mut file, value);
        }
        let section_fields = if self.section_less { [0, 0, 0] } else { [SHDR, 3, 2] };
        for value in section_fields {
            put16(&mut file, value);
        }

        if let Some(path) = &interpreter {
            segment(&mut file, 3, PF_R, interpreter_at, length(path), 1);
        }
        let write = if self.writable_code { PF_W } else { 0 };
        segment(&mut file, 1, PF_R | PF_X | write, 0, loaded, 0x1000);
        file.extend_from_slice(&body);
        if !self.section_less {
            file.extend_from_slice(names);
            file.resize(file.len().next_multiple_of(8), 0);
            for section in sections {
                section_header(&mut file, section, names_at);
            }
        }
        file.extend_from_slice(&self.overlay);
        file
    }
}

/// The string table of section names: offsets 1 and 7.
const NAMES: &[u8] = b"\0.text\0.shstrtab\0";

/// A section: name offset, type, flags, file offset (0: the string table's), size.
type Section = (u32, u32, u64, u64, u64);

fn sections(code_at: u64, code_len: u64) -> Vec<Section> {
    // SHT_NULL, SHT_PROGBITS (alloc, execute), SHT_STRTAB.
    vec![(0, 0, 0, 0, 0), (1, 1, 6, code_at, code_len), (7, 3, 0, 0, length(NAMES))]
}

fn section_header(file: &mut Vec<u8>, section: Section, names_at: u64) {
    let (name, kind, flags, offset, size) = section;
    let offset = if kind == 3 { names_at } else { offset };
    put32(file, name);
    put32(file, kind);
    put64(file, flags);
    put64(file, if kind == 1 { BASE + offset } else { 0 });
    put64(file, offset);
    put64(file, size);
    put32(file, 0);
    put32(file, 0);
    put64(file, u64::from(kind != 0));
    put64(file, 0);
}

fn segment(file: &mut Vec<u8>, kind: u32, flags: u32, offset: u64, size: u64, align: u64) {
    put32(file, kind);
    put32(file, flags);
    put64(file, offset);
    put64(file, BASE + offset);
    put64(file, BASE + offset);
    put64(file, size);
    put64(file, size);
    put64(file, align);
}

/// Bytes that look packed or encrypted: a linear congruential generator (Knuth's MMIX constants): the same bytes every time.
pub(crate) fn noise(len: u32) -> impl Iterator<Item = u8> {
    let mut state: u64 = 0x2545_f491_4f6c_dd1d;
    (0..len).map(move |_| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    })
}

fn length(bytes: &[u8]) -> u64 {
    bytes.len() as u64
}

fn put16(file: &mut Vec<u8>, value: u16) {
    file.extend_from_slice(&value.to_le_bytes());
}

fn put32(file: &mut Vec<u8>, value: u32) {
    file.extend_from_slice(&value.to_le_bytes());
}

fn put64(file: &mut Vec<u8>, value: u64) {
    file.extend_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, process::Command};

    use super::*;

    fn field16(file: &[u8], at: usize) -> u16 {
        u16::from_le_bytes([file[at], file[at + 1]])
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn programs_run_and_exit_0() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let packed = Elf {
            section_less: true,
            writable_code: true,
            upx: true,
            noise: 4_096,
            ..Elf::default()
        };
        for (name, elf) in [("plain", Elf::default()), ("packed", packed)] {
            let path = dir.path().join(name);
            fs::write(&path, elf.build()).expect("write");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
            // Through a shell: another thread's fork may briefly hold the file open for writing,
            // and the shell's own start-up outlasts that.
            let status = Command::new("sh")
                .args(["-c", "for i in 1 2 3 4 5; do \"$0\"; e=$?; [ $e -ne 126 ] && exit $e; done; exit 126"])
                .arg(&path)
                .status()
                .expect("start");
            assert_eq!(status.code(), Some(0), "{name}");
        }
    }

    #[test]
    fn headers_say_what_was_asked_for() {
        let plain = Elf::default().build();
        assert_eq!(field16(&plain, 60), 3, "sections");
        assert_eq!(plain[64 + 4], 5, "read and execute");
        let packed = Elf { section_less: true, writable_code: true, upx: true, ..Elf::default() };
        let packed = packed.build();
        assert_eq!(field16(&packed, 60), 0, "no sections");
        assert_eq!(packed[64 + 4], 7, "read, write and execute");
        assert!(packed.windows(4).any(|w| w == b"UPX!"));
    }

    #[test]
    fn readelf_agrees() {
        // Part of binutils, without which no Rust program links.
        let readelf = crate::tools::find("readelf").expect("readelf");
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("odd");
        let odd = Elf { interpreter: Some("/opt/.lib/ld.so".into()), ..Elf::default() };
        fs::write(&path, odd.build()).expect("write");
        let output = Command::new(readelf).arg("-lSW").arg(&path).output().expect("readelf");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("program interpreter: /opt/.lib/ld.so"), "{text}");
        assert!(text.contains(".text") && text.contains(".shstrtab"), "{text}");
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn the_same_every_time() {
        let elf = Elf { noise: 100, ..Elf::default() };
        assert_eq!(elf.build(), elf.build());
    }
}
