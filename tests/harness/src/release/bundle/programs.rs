//! Programs that start anywhere: each with the libraries that it needs, and started by the loader beside them.
//!
//! Reads a folder that packages were unpacked to; writes the folder that becomes the bundle: `bin/` scripts, `libexec/` the
//! programs, `lib/` what they need. Starts none of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use goblin::elf::Elf;
use walkdir::WalkDir;

use crate::tools::{command, run};

/// The loader that Debian's programs for amd64 ask for.
const LOADER: &str = "ld-linux-x86-64.so.2";

/// The programs that are taken: those that look. What writes to file systems stays out.
const PROGRAMS: [&str; 40] = [
    "blkcalc",
    "blkcat",
    "blkls",
    "blkstat",
    "dmsetup",
    "fcat",
    "ffind",
    "fiwalk",
    "fls",
    "fsstat",
    "hfind",
    "icat",
    "ifind",
    "ils",
    "img_cat",
    "img_stat",
    "istat",
    "jcat",
    "jls",
    "jpeg_extract",
    "lvm",
    "mdadm",
    "mmcat",
    "mmls",
    "mmstat",
    "ntfs-3g",
    "ntfscat",
    "ntfscluster",
    "ntfsinfo",
    "ntfsls",
    "ntfsundelete",
    "pstat",
    "sigfind",
    "srch_strings",
    "tsk_comparedir",
    "tsk_gettimes",
    "tsk_imageinfo",
    "tsk_loaddb",
    "tsk_recover",
    "usnjls",
];

/// What LVM's one program is called by.
const OF_LVM: [&str; 10] = [
    "lvdisplay",
    "lvs",
    "lvscan",
    "pvdisplay",
    "pvs",
    "pvscan",
    "vgchange",
    "vgdisplay",
    "vgs",
    "vgscan",
];

/// Gathers the programs of unpacked packages, and others, into a folder.
///
/// # Errors
/// Where a program or a library that one needs is in none of the packages.
pub(super) fn gather(root: &Path, others: &[PathBuf], stage: &Path) -> Result<()> {
    let [bin, libexec, lib] = ["bin", "libexec", "lib"].map(|name| stage.join(name));
    for folder in [&bin, &libexec, &lib] {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let files = Files::of(root)?;
    let mut open = vec![LOADER.to_owned()];
    let named = PROGRAMS.iter().map(|name| files.program(name));
    for program in named.chain(others.iter().cloned().map(Ok)) {
        let program = program?;
        let name =
            program.file_name().and_then(|name| name.to_str()).context("a program's name")?;
        let own = libexec.join(name);
        fs::copy(&program, &own).with_context(|| format!("copy {}", program.display()))?;
        open.extend(needs(&own)?);
        script(&bin, name, (name, ""))?;
    }
    for name in OF_LVM {
        script(&bin, name, ("lvm", name))?;
    }
    let mut seen = BTreeSet::new();
    while let Some(name) = open.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        let library = files.library(&name)?;
        fs::copy(library, lib.join(&name)).with_context(|| format!("copy {name}"))?;
        open.extend(needs(&lib.join(&name))?);
    }
    let mut strip = command("strip")?;
    for entry in WalkDir::new(&libexec).min_depth(1) {
        strip.arg(entry?.path());
    }
    run(&mut strip)?;
    Ok(())
}

/// Writes what starts a program, with a first word, by the bundle's own loader. It asks for nothing but a shell.
fn script(bin: &Path, name: &str, (program, word): (&str, &str)) -> Result<()> {
    let path = bin.join(name);
    let text = format!(
        "#!/bin/sh\nhere=${{0%/*}}/..\n\
         exec \"$here/lib/{LOADER}\" --inhibit-cache --library-path \"$here/lib\" \"$here/libexec/{program}\" {word} \"$@\"\n"
    );
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// The libraries that a program or library names.
fn needs(path: &Path) -> Result<Vec<String>> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let elf =
        Elf::parse(&bytes).with_context(|| format!("{} is no ELF program", path.display()))?;
    Ok(elf.libraries.iter().map(|name| (*name).to_owned()).collect())
}

/// The files of unpacked packages, by their names.
struct Files {
    programs: BTreeMap<String, PathBuf>,
    libraries: BTreeMap<String, PathBuf>,
}

impl Files {
    fn of(root: &Path) -> Result<Self> {
        let mut files = Self { programs: BTreeMap::new(), libraries: BTreeMap::new() };
        for entry in WalkDir::new(root).sort_by_file_name() {
            let entry = entry.context("list the packages' files")?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let folder = entry.path().parent().and_then(Path::file_name).unwrap_or_default();
            // Links are followed when they are copied: their targets lie beside them.
            if entry.file_type().is_dir() {
                continue;
            }
            if folder == "bin" || folder == "sbin" {
                files.programs.entry(name).or_insert_with(|| entry.into_path());
            } else if name.contains(".so") && folder == "x86_64-linux-gnu" {
                files.libraries.entry(name).or_insert_with(|| entry.into_path());
            }
        }
        Ok(files)
    }

    fn program(&self, name: &str) -> Result<PathBuf> {
        self.programs.get(name).cloned().with_context(|| format!("no package has a program {name}"))
    }

    fn library(&self, name: &str) -> Result<&Path> {
        let found = self.libraries.get(name).filter(|path| path.is_file());
        let found = found.map(PathBuf::as_path);
        found.with_context(|| format!("no package has {name}: add the one that does to tools.lock"))
    }
}
