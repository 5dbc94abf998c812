//! Executables: what their structure, place and name give away.
//!
//! Purpose: findings on single executables. Nothing here is proof; each names the fact it rests on. What a
//! distribution ships (kernel modules, objects, debug symbols, boot loaders, Go and Rust programs) stays
//! without a finding, or below low. Touches the facts it is given; never the file.

use cleanroom_contract::{Binary, BinaryKind, Finding, Severity};

use super::{Subject, Verdict};

/// Where systems keep program interpreters: the dynamic linkers of glibc and musl (`/lib*`, `/usr/lib*`), of
/// the BSDs and Solaris (`/libexec`, `/usr/libexec`, `/usr/lib`), of Android (`/system`, `/apex`), and of
/// package managers with a tree of their own (Nix, Guix, snap, Linuxbrew, and `/opt`).
const INTERPRETER_PLACES: &[&str] = &[
    "/lib/",
    "/lib32/",
    "/lib64/",
    "/libx32/",
    "/usr/lib/",
    "/usr/lib32/",
    "/usr/lib64/",
    "/usr/libx32/",
    "/usr/local/lib/",
    "/usr/x86_64-linux-gnu/lib",
    "/libexec/",
    "/usr/libexec/",
    "/system/bin/",
    "/apex/",
    "/nix/store/",
    "/gnu/store/",
    "/snap/",
    "/opt/",
    "/home/linuxbrew/.linuxbrew/lib/",
];

/// Where anybody may write.
const OPEN_PLACES: &[&str] =
    &["/tmp", "/var/tmp", "/dev/shm", "/run/shm", "/run/lock", "/var/lock", "/var/crash"];

/// Where somebody other than the superuser may write.
const USERS_PLACES: &[&str] = &["/home", "/run/user", "/srv/ftp", "/mnt", "/media"];

/// Boot loaders, kernels, their modules and separate symbols: built by rules of their own.
const BOOT_PLACES: &[&str] = &[
    "/boot/",
    "/usr/lib/debug/",
    "/usr/lib/modules/",
    "/lib/modules/",
    "/usr/lib/grub/",
    "/usr/lib/syslinux/",
    "/usr/share/syslinux/",
    "/usr/lib/ipxe/",
    "/usr/share/qemu/",
    "/usr/lib/xen",
];

/// Extensions that promise a document, an image, a text or a medium.
const INNOCENT: &[&str] = &[
    "jpg", "jpeg", "png", "gif", "bmp", "svg", "webp", "ico", "tif", "tiff", "pdf", "doc", "docx",
    "xls", "xlsx", "ppt", "pptx", "odt", "rtf", "txt", "md", "csv", "log", "conf", "cfg", "ini",
    "json", "xml", "yaml", "yml", "html", "htm", "css", "mp3", "mp4", "avi", "wav", "mov", "ttf",
    "woff",
];

/// Content of this entropy, in bits a byte, is compressed or encrypted for the most part; machine code
/// stays near 6.
const PACKED_ENTROPY: f64 = 7.2;

/// The findings on `subject`. None for what is no executable.
pub(crate) fn judge(subject: &Subject<'_>) -> Vec<Finding> {
    let path = String::from_utf8_lossy(subject.path);
    let case = Case { subject, path: &path };
    let checks = [
        sectionless,
        writable_code,
        packed,
        interpreter,
        rpath,
        runpath,
        temporary_place,
        innocent_name,
    ];
    checks.iter().filter_map(|check| check(&case)).map(|verdict| verdict.on(subject)).collect()
}

/// What the checks ask of a subject.
struct Case<'a> {
    subject: &'a Subject<'a>,
    path: &'a str,
}

impl<'a> Case<'a> {
    fn binary(&self, kind: BinaryKind) -> Option<&'a Binary> {
        self.subject.binary.filter(|binary| binary.kind == kind)
    }

    /// An ELF file that is a program or a library: no object, kernel module or core.
    fn program(&self) -> Option<&'a Binary> {
        self.binary(BinaryKind::Elf)
            .filter(|binary| matches!(binary.object_type.as_deref(), Some("exec" | "dyn")))
    }

    fn is_format(&self, formats: &[&str]) -> bool {
        self.subject.format.is_some_and(|format| formats.contains(&format))
    }

    fn may_be_run(&self) -> bool {
        self.subject.mode & 0o111 != 0
    }

    fn starts_up_machine(&self) -> bool {
        BOOT_PLACES.iter().any(|place| self.path.starts_with(place))
    }

    /// The path below an open place. A volume or folder can be that place itself: `tmp:/x`; and a btrfs
    /// subvolume's name can come before it: `/@/tmp/x`.
    fn below_open_place(&self) -> Option<&'static str> {
        let subvolume =
            self.path.strip_prefix("/@").and_then(|rest| rest.find('/').map(|at| &rest[at..]));
        let paths = [Some(self.path), subvolume];
        let mut paths = paths.into_iter().flatten();
        let volume = self.subject.volume.split('#').next().unwrap_or_default();
        let by_volume = match volume {
            "tmp" => Some("/tmp"),
            "shm" => Some("/dev/shm"),
            _ => None,
        };
        paths
            .find_map(|path| OPEN_PLACES.iter().copied().find(|place| is_below(path, place)))
            .or(by_volume)
    }
}

/// A verdict with what all of this family have in common.
fn verdict(what: &str, severity: Severity, technique: &str, words: (&str, String)) -> Verdict {
    Verdict {
        source: format!("binaries:{what}"),
        severity,
        title: words.0.to_owned(),
        reason: words.1,
        technique: Some(technique.to_owned()),
        evidence: None,
        author: None,
    }
}

fn is_below(path: &str, place: &str) -> bool {
    path.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn kind_of(binary: &Binary) -> String {
    let class = binary.class.map_or_else(String::new, |class| format!("{class}-bit "));
    format!(
        "{class}{} ELF {}",
        binary.machines.join("+"),
        binary.object_type.as_deref().unwrap_or("file")
    )
}

fn sectionless(case: &Case<'_>) -> Option<Verdict> {
    let binary = case.program().filter(|binary| binary.sectionless == Some(true))?;
    let severity = if case.starts_up_machine() { Severity::Info } else { Severity::Medium };
    let reason = format!(
        "This {} has no section headers: compilers always write them, and packers and those who hinder \
         analysis take them away.",
        kind_of(binary)
    );
    Some(verdict("sectionless", severity, "T1027.008", ("ELF without section headers", reason)))
}

fn writable_code(case: &Case<'_>) -> Option<Verdict> {
    let binary = case.program()?;
    let count = binary.writable_code_segments.filter(|count| *count > 0)?;
    let loaded = case.may_be_run() || !binary.libraries.is_empty();
    let severity =
        if case.starts_up_machine() || !loaded { Severity::Info } else { Severity::Medium };
    let reason = format!(
        "{count} segment(s) of this {} are loaded writable and executable at once, as programs need that \
         unpack or change their own code.",
        kind_of(binary)
    );
    Some(verdict("writable-code", severity, "T1027.002", ("ELF with writable code", reason)))
}

fn packed(case: &Case<'_>) -> Option<Verdict> {
    let binary = case.subject.binary?;
    if let Some(packer) = binary.packers.first() {
        let entropy = case
            .subject
            .entropy
            .map_or_else(String::new, |bits| format!("; its entropy is {bits} bits a byte"));
        let reason = format!("It bears the marks of the packer {packer}{entropy}.");
        return Some(verdict(
            "packed",
            Severity::Medium,
            "T1027.002",
            ("Packed executable", reason),
        ));
    }
    case.program().filter(|binary| binary.sectionless == Some(true))?;
    let bits = case.subject.entropy.filter(|bits| *bits >= PACKED_ENTROPY)?;
    let reason = format!(
        "Its entropy is {bits} bits a byte and it has no section headers: most of it is compressed or \
         encrypted, by a packer that leaves no known mark."
    );
    Some(verdict("packed", Severity::Medium, "T1027.002", ("Executable that looks packed", reason)))
}

fn interpreter(case: &Case<'_>) -> Option<Verdict> {
    let path = case.program()?.interpreter.as_deref()?;
    let plain = !path.split('/').any(|part| part == "..");
    if plain && INTERPRETER_PLACES.iter().any(|place| path.starts_with(place)) {
        return None;
    }
    let writable = OPEN_PLACES.iter().chain(USERS_PLACES).any(|place| is_below(path, place));
    let severity =
        if writable || !path.starts_with('/') { Severity::High } else { Severity::Medium };
    let reason =
        format!("It is loaded by {path}, which is not where systems keep their dynamic linker.");
    let mut verdict =
        verdict("interpreter", severity, "T1574.006", ("ELF with a foreign interpreter", reason));
    verdict.evidence = Some(path.to_owned());
    Some(verdict)
}

fn rpath(case: &Case<'_>) -> Option<Verdict> {
    search_path("rpath", &case.program()?.rpath)
}

fn runpath(case: &Case<'_>) -> Option<Verdict> {
    search_path("runpath", &case.program()?.runpath)
}

/// The worst entry of a library search path. `$ORIGIN` and fixed system directories are normal.
fn search_path(which: &str, entries: &[String]) -> Option<Verdict> {
    let worst = entries
        .iter()
        .filter_map(|entry| judge_entry(entry).map(|(severity, why)| (severity, why, entry)));
    // The first of the worst, so that the order in the file decides.
    let (severity, why, entry) = worst.reduce(|one, two| if two.0 > one.0 { two } else { one })?;
    let reason = format!(
        "Its {} names {entry:?}, {why}: who can write there decides which libraries it loads.",
        which.to_uppercase()
    );
    let mut verdict = verdict(
        which,
        severity,
        "T1574.006",
        ("ELF that loads libraries from a writable place", reason),
    );
    verdict.evidence = Some(entries.join(":"));
    Some(verdict)
}

fn judge_entry(entry: &str) -> Option<(Severity, &'static str)> {
    let below = |places: &[&str]| places.iter().any(|place| is_below(entry, place));
    if entry.is_empty() {
        Some((Severity::Medium, "which stands for the working directory"))
    } else if ["$ORIGIN", "${ORIGIN}", "$LIB", "${LIB}"]
        .iter()
        .any(|token| entry.starts_with(token))
    {
        None
    } else if !entry.starts_with('/') {
        Some((Severity::Medium, "which is relative to the working directory"))
    } else if below(OPEN_PLACES) {
        Some((Severity::Medium, "where anybody may write"))
    } else if below(USERS_PLACES) && !is_below(entry, "/home/linuxbrew/.linuxbrew") {
        // Often what the build left behind, but no less usable.
        Some((Severity::Low, "which belongs to a user"))
    } else {
        None
    }
}

fn temporary_place(case: &Case<'_>) -> Option<Verdict> {
    let place = case.below_open_place()?;
    let elf = case.is_format(&["ELF"]);
    let other = case.is_format(&["EXE", "MACHO", "SCRIPT"]) && case.may_be_run();
    if !elf && !other {
        return None;
    }
    let object = case.subject.binary.is_some_and(|binary| {
        matches!(binary.object_type.as_deref(), Some("rel" | "core"))
            && binary.kind == BinaryKind::Elf
    });
    let hidden =
        case.path.split('/').any(|part| part.len() > 2 && part.starts_with('.') && part != "..");
    let script = case.is_format(&["SCRIPT"]);
    let severity = match (object, script) {
        (true, _) => Severity::Info,
        _ if hidden || is_below(place, "/dev/shm") => Severity::High,
        (_, true) => Severity::Low,
        _ => Severity::Medium,
    };
    let reason = format!(
        "{} lies below {place}, where anybody may write and packages install nothing{}.",
        match case.subject.format {
            Some("SCRIPT") => "A script that may be run",
            Some("ELF") if object => "An ELF object",
            Some("ELF") => "An ELF executable",
            _ => "An executable",
        },
        if hidden { ", under a hidden name" } else { "" }
    );
    let technique = if script { "T1059.004" } else { "T1105" };
    let technique = if hidden { "T1564.001" } else { technique };
    Some(verdict(
        "temporary-place",
        severity,
        technique,
        ("Executable in a temporary directory", reason),
    ))
}

fn innocent_name(case: &Case<'_>) -> Option<Verdict> {
    // A DOS or Windows program has to prove itself: two letters are easily met in other data.
    let windows = case.binary(BinaryKind::Pe).is_some();
    let program = case.is_format(&["ELF", "MACHO"]) || windows;
    let name = case.path.rsplit('/').next().unwrap_or_default();
    let (stem, extension) = name.rsplit_once('.')?;
    let extension = extension.to_ascii_lowercase();
    if !program || stem.is_empty() || !INNOCENT.contains(&extension.as_str()) {
        return None;
    }
    let format = case.subject.format.unwrap_or("executable");
    let reason = format!(
        "Its name ends in .{extension}, its content is {format}: a program under the name of something else."
    );
    Some(verdict(
        "innocent-name",
        Severity::High,
        "T1036.008",
        ("Executable named as a document or image", reason),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::{binary, entropy, format};

    fn elf() -> Binary {
        *binary::facts(&binary::samples::Elf { runpath: "", ..Default::default() }.build(), "ELF")
            .unwrap()
            .unwrap()
    }

    fn subject<'a>(path: &'a str, binary: Option<&'a Binary>) -> Subject<'a> {
        let format = binary.map(|binary| if binary.kind == BinaryKind::Pe { "EXE" } else { "ELF" });
        Subject {
            volume: "disk.img:p1",
            path: path.as_bytes(),
            mode: 0o755,
            format,
            binary,
            entropy: Some(6.1),
            sha256: None,
        }
    }

    /// Source, severity, technique.
    fn short(findings: &[Finding]) -> Vec<(&str, Severity, &str)> {
        findings
            .iter()
            .map(|f| (&*f.source, f.severity, f.technique.as_deref().unwrap_or("")))
            .collect()
    }

    #[test]
    fn an_ordinary_program_has_no_finding() {
        assert_eq!(judge(&subject("/usr/bin/ls", Some(&elf()))), []);
        assert_eq!(judge(&subject("/etc/passwd", None)), []);
    }

    #[test]
    fn each_fact_has_its_finding() {
        type Change = fn(&mut Binary);
        let cases: &[(Change, &str, Severity, &str)] = &[
            (|b| b.sectionless = Some(true), "binaries:sectionless", Severity::Medium, "T1027.008"),
            (
                |b| b.writable_code_segments = Some(1),
                "binaries:writable-code",
                Severity::Medium,
                "T1027.002",
            ),
            (|b| b.packers = vec!["upx".into()], "binaries:packed", Severity::Medium, "T1027.002"),
            (
                |b| b.interpreter = Some("/tmp/ld.so".into()),
                "binaries:interpreter",
                Severity::High,
                "T1574.006",
            ),
            (
                |b| b.interpreter = Some("ld.so".into()),
                "binaries:interpreter",
                Severity::High,
                "T1574.006",
            ),
            (
                |b| b.interpreter = Some("/lib/../etc/ld.so".into()),
                "binaries:interpreter",
                Severity::Medium,
                "T1574.006",
            ),
            (
                |b| b.runpath = vec!["$ORIGIN".into(), "/dev/shm/l".into()],
                "binaries:runpath",
                Severity::Medium,
                "T1574.006",
            ),
            (
                |b| b.rpath = vec!["".into(), "/usr/lib".into()],
                "binaries:rpath",
                Severity::Medium,
                "T1574.006",
            ),
            (|b| b.rpath = vec!["lib".into()], "binaries:rpath", Severity::Medium, "T1574.006"),
            (
                |b| b.rpath = vec!["/home/ci/lib".into()],
                "binaries:rpath",
                Severity::Low,
                "T1574.006",
            ),
        ];
        for (change, source, severity, technique) in cases {
            let mut binary = elf();
            change(&mut binary);
            let findings = judge(&subject("/usr/bin/x", Some(&binary)));
            assert_eq!(short(&findings), [(*source, *severity, *technique)]);
            assert!(findings[0].reason.ends_with('.') && findings[0].id.len() == 16);
        }
    }

    #[test]
    fn normal_search_paths_have_none() {
        let mut binary = elf();
        binary.runpath = ["$ORIGIN/../lib", "${ORIGIN}", "/usr/lib/x", "/opt/y/lib", "/tmpfiles"]
            .map(String::from)
            .to_vec();
        assert_eq!(judge(&subject("/usr/bin/x", Some(&binary))), []);
    }

    #[test]
    fn objects_modules_and_cores_are_let_be() {
        for kind in ["rel", "core"] {
            let mut binary = elf();
            binary.object_type = Some(kind.into());
            binary.sectionless = Some(true);
            binary.writable_code_segments = Some(2);
            assert_eq!(judge(&subject("/lib/modules/6.1/x.ko", Some(&binary))), []);
            let worst =
                judge(&subject("/tmp/ccXYZ.o", Some(&binary))).iter().map(|f| f.severity).max();
            assert_eq!(worst, Some(Severity::Info));
        }
        let mut kernel = elf();
        kernel.writable_code_segments = Some(1);
        assert_eq!(
            short(&judge(&subject("/usr/lib/debug/boot/vmlinux", Some(&kernel))))[0].1,
            Severity::Info
        );
    }

    #[test]
    fn high_entropy_counts_only_without_sections() {
        let mut binary = elf();
        fn full(binary: &Binary) -> Subject<'_> {
            Subject { entropy: Some(7.2), ..subject("/usr/bin/x", Some(binary)) }
        }
        assert_eq!(judge(&full(&binary)), []);
        binary.sectionless = Some(true);
        let sources: Vec<_> = judge(&full(&binary)).into_iter().map(|f| f.source).collect();
        assert_eq!(sources, ["binaries:sectionless", "binaries:packed"]);
    }

    #[test]
    fn executables_in_temporary_places() {
        let elf = elf();
        let plain =
            |path, mode, format| Subject { mode, format: Some(format), ..subject(path, None) };
        for (subject, severity) in [
            (subject("/tmp/x", Some(&elf)), Some(Severity::Medium)),
            (
                Subject { mode: 0o644, ..subject("/var/tmp/a/x", Some(&elf)) },
                Some(Severity::Medium),
            ),
            (subject("/dev/shm/x", Some(&elf)), Some(Severity::High)),
            (subject("/tmp/.ICE-unix/x", Some(&elf)), Some(Severity::High)),
            (subject("/@/tmp/x", Some(&elf)), Some(Severity::Medium)),
            (subject("/@rootfs/var/tmp/x", Some(&elf)), Some(Severity::Medium)),
            (Subject { volume: "tmp#2", ..subject("/x", Some(&elf)) }, Some(Severity::Medium)),
            (subject("/tmpx/x", Some(&elf)), None),
            (subject("/srv/tmp/x", Some(&elf)), None),
            (plain("/tmp/a.sh", 0o755, "SCRIPT"), Some(Severity::Low)),
            (plain("/tmp/a.sh", 0o644, "SCRIPT"), None),
            (plain("/tmp/a.exe", 0o755, "EXE"), Some(Severity::Medium)),
            (plain("/tmp/a.exe", 0o644, "EXE"), None),
            (plain("/tmp/a.txt", 0o755, "TEXT"), None),
        ] {
            let found = judge(&subject);
            assert_eq!(
                found.first().map(|f| f.severity),
                severity,
                "{}",
                subject.path.escape_ascii()
            );
            assert!(found.iter().all(|f| f.source == "binaries:temporary-place"));
        }
    }

    #[test]
    fn programs_named_as_documents() {
        let elf = elf();
        let pe = *binary::facts(&binary::samples::pe(&[]), "EXE").unwrap().unwrap();
        for (path, binary, hit) in [
            ("/var/www/logo.JPG", &elf, true),
            ("/etc/x.conf", &elf, true),
            ("/srv/invoice.pdf", &pe, true),
            ("/usr/lib/libx.so.1", &elf, false),
            ("/home/a/.png", &elf, false),
            ("/usr/bin/log", &elf, false),
        ] {
            let found = judge(&subject(path, Some(binary)));
            let expected: &[_] =
                if hit { &[("binaries:innocent-name", Severity::High, "T1036.008")] } else { &[] };
            assert_eq!(short(&found), expected, "{path}");
        }
    }

    /// What this machine's distribution ships, as far as it has ELF files.
    #[test]
    fn a_stock_system_has_nothing_at_medium_or_above() {
        let mut seen = 0;
        let mut fired = Vec::new();
        for folder in
            ["/usr/bin", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"]
        {
            let Ok(entries) = std::fs::read_dir(folder) else { continue };
            let mut paths: Vec<_> =
                entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
            paths.sort();
            for path in paths.into_iter().take(150) {
                let Ok(data) = std::fs::read(&path) else { continue };
                let format = format::identify(&data[..data.len().min(4096)]);
                // Unoptimised builds take long over large files.
                if format != Some("ELF") || data.len() > 4 << 20 {
                    continue;
                }
                seen += 1;
                let facts = binary::facts(&data, "ELF");
                assert!(facts.is_ok(), "{}: {facts:?}", path.display());
                let facts = facts.unwrap_or_default();
                let text = path.to_string_lossy();
                let entropy = Some(entropy::entropy_of(&data));
                let subject = Subject { format, entropy, ..subject(&text, facts.as_deref()) };
                fired.extend(
                    judge(&subject)
                        .into_iter()
                        .map(|f| (f.severity, f.source, text.to_string(), f.reason)),
                );
            }
        }
        fired.retain(|(severity, ..)| *severity >= Severity::Medium);
        assert!(seen > 0, "this machine has no small executables where they belong");
        assert!(fired.is_empty(), "of {seen} files: {fired:#?}");
    }
}
