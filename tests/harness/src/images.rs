//! File systems in image files, built from folders without mounting and without root.
//!
//! Touches only the folder it is given. Every builder fixes identifiers, so that an image can be
//! recognised in a report; ext images are the same byte for byte when their folder is.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{FileTypeExt, MetadataExt, symlink},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use walkdir::WalkDir;

use crate::tools::{command, run};

/// 1,048,576 bytes.
pub const MIB: u64 = 1 << 20;

/// The smallest XFS image: `mkfs.xfs` since 5.19 refuses anything below 300 MiB. Its holes cost
/// no disk space.
pub const XFS_MIN: u64 = 320 * MIB;

/// A small btrfs image that `mkfs.btrfs` accepts with its default profiles.
pub const BTRFS_MIN: u64 = 128 * MIB;

/// The moment that images claim as theirs, 14 November 2023, in seconds since 1970.
pub const IMAGE_TIME: i64 = 1_700_000_000;

/// Which of the ext family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ext {
    /// Without a journal.
    Ext2,
    /// With a journal.
    Ext3,
    /// With a journal, extents and checksums.
    Ext4,
}

impl Ext {
    fn name(self) -> &'static str {
        match self {
            Self::Ext2 => "ext2",
            Self::Ext3 => "ext3",
            Self::Ext4 => "ext4",
        }
    }
}

/// An image to build: where, how large, and with which identifier.
#[derive(Clone, Debug)]
pub struct Image {
    path: PathBuf,
    size: u64,
    uuid: String,
    label: Option<String>,
}

impl Image {
    /// An image `name` in `folder`, of `size` bytes, with a fixed UUID.
    #[must_use]
    pub fn new(folder: &Path, name: &str, size: u64) -> Self {
        let uuid = "c1ea0000-0000-4000-8000-000000000001".to_owned();
        Self { path: folder.join(name), size, uuid, label: None }
    }

    /// Another UUID (FAT takes its first eight hexadecimal digits as the volume id).
    #[must_use]
    pub fn uuid(mut self, uuid: &str) -> Self {
        uuid.clone_into(&mut self.uuid);
        self
    }

    /// A volume label.
    #[must_use]
    pub fn label(mut self, label: &str) -> Self {
        self.label = Some(label.to_owned());
        self
    }

    /// An ext2, ext3 or ext4 file system that holds the folder's content: names, modes, owners,
    /// access and modification times in whole seconds, extended attributes, links and devices.
    /// The change time is the source file's own.
    ///
    /// # Errors
    /// Where `mke2fs` refuses, for instance as the content does not fit. Version 1.47.0 crashes
    /// on folders more than about a thousand deep.
    pub fn ext(&self, kind: Ext, content: &Path) -> Result<PathBuf> {
        self.empty_file()?;
        let mut mke2fs = command("mke2fs")?;
        mke2fs.args(["-q", "-F", "-t", kind.name(), "-U", &self.uuid, "-E"]);
        mke2fs.arg(format!("root_owner=0:0,hash_seed={}", self.uuid));
        mke2fs.env("E2FSPROGS_FAKE_TIME", IMAGE_TIME.to_string());
        if let Some(label) = &self.label {
            mke2fs.args(["-L", label]);
        }
        run(mke2fs.arg("-d").arg(content).arg(&self.path))?;
        Ok(self.path.clone())
    }

    /// An XFS file system with the folder's content, as far as a prototype file can say it: see
    /// [`xfs_prototype`]. Times are those of the building.
    ///
    /// # Errors
    /// Where the content can not be said in a prototype file or `mkfs.xfs` refuses.
    pub fn xfs(&self, content: &Path) -> Result<PathBuf> {
        ensure!(self.size >= XFS_MIN, "mkfs.xfs needs {XFS_MIN} bytes, not {}", self.size);
        self.empty_file()?;
        // mkfs reads the sources through this link: the path that a prototype file gives may hold
        // no white space, and where the content lies is not ours to choose.
        let scratch = tempfile::tempdir().context("create a temporary folder")?;
        let link = scratch.path().join("content");
        symlink(fs::canonicalize(content)?, &link).context("link to the content")?;
        let prototype = scratch.path().join("prototype");
        fs::write(&prototype, xfs_prototype(content, &link)?).context("write prototype")?;
        let mut mkfs = command("mkfs.xfs")?;
        mkfs.args(["-q", "-f", "-m", &format!("uuid={}", self.uuid)]);
        if let Some(label) = &self.label {
            mkfs.args(["-L", label]);
        }
        run(mkfs.arg("-p").arg(&prototype).arg(&self.path))?;
        Ok(self.path.clone())
    }

    /// A btrfs file system with the folder's content.
    ///
    /// # Errors
    /// Where `mkfs.btrfs` refuses, for instance below [`BTRFS_MIN`].
    pub fn btrfs(&self, content: &Path) -> Result<PathBuf> {
        self.empty_file()?;
        let mut mkfs = command("mkfs.btrfs")?;
        mkfs.args(["-q", "-f", "-U", &self.uuid]);
        if let Some(label) = &self.label {
            mkfs.args(["-L", label]);
        }
        run(mkfs.arg("--rootdir").arg(content).arg(&self.path))?;
        Ok(self.path.clone())
    }

    /// A FAT file system with the folder's directories and regular files; FAT has nothing else,
    /// so links and special files are left out.
    ///
    /// # Errors
    /// Where `mkfs.vfat` or `mtools` refuse, for instance a name that is not UTF-8.
    pub fn vfat(&self, content: &Path) -> Result<PathBuf> {
        self.empty_file()?;
        let id: String = self.uuid.chars().filter(char::is_ascii_hexdigit).take(8).collect();
        let mut mkfs = command("mkfs.vfat")?;
        mkfs.args(["--invariant", "-i", &id]);
        if let Some(label) = &self.label {
            mkfs.args(["-n", label]);
        }
        run(mkfs.arg(&self.path))?;
        for entry in WalkDir::new(content).min_depth(1).sort_by_file_name() {
            let entry = entry?;
            let relative = entry.path().strip_prefix(content)?;
            let target = relative.to_str().with_context(|| format!("{relative:?} is not UTF-8"))?;
            let target = format!("::/{target}");
            if entry.file_type().is_dir() {
                run(command("mmd")?.arg("-i").arg(&self.path).arg(target))?;
            } else if entry.file_type().is_file() {
                let mut mcopy = command("mcopy")?;
                run(mcopy.args(["-Q", "-m", "-i"]).arg(&self.path).arg(entry.path()).arg(target))?;
            }
        }
        Ok(self.path.clone())
    }

    /// An NTFS file system with these files in its root folder, under their base names.
    ///
    /// # Errors
    /// Where `mkntfs` or `ntfscp` refuse.
    pub fn ntfs(&self, files: &[PathBuf]) -> Result<PathBuf> {
        self.empty_file()?;
        let mut mkntfs = command("mkntfs")?;
        mkntfs.args(["-q", "-F", "-Q"]);
        if let Some(label) = &self.label {
            mkntfs.args(["-L", label]);
        }
        run(mkntfs.arg(&self.path))?;
        for file in files {
            let name =
                file.file_name().with_context(|| format!("{} has no name", file.display()))?;
            run(command("ntfscp")?.args(["-q", "-f"]).arg(&self.path).arg(file).arg(name))?;
        }
        Ok(self.path.clone())
    }

    /// A swap area.
    ///
    /// # Errors
    /// Where `mkswap` refuses.
    pub fn swap(&self) -> Result<PathBuf> {
        self.empty_file()?;
        run(command("mkswap")?.args(["-q", "-U", &self.uuid]).arg(&self.path))?;
        Ok(self.path.clone())
    }

    /// Zeros: a partition that holds nothing.
    ///
    /// # Errors
    /// Where the file can not be made.
    pub fn zeros(&self) -> Result<PathBuf> {
        self.empty_file()?;
        Ok(self.path.clone())
    }

    /// A new file of the wanted size, all hole.
    fn empty_file(&self) -> Result<()> {
        let file =
            File::create(&self.path).with_context(|| format!("create {}", self.path.display()))?;
        file.set_len(self.size).with_context(|| format!("size {}", self.path.display()))
    }
}

/// The prototype file (`mkfs.xfs -p`, mkfs.xfs(8)) for a folder's content; `sources` is the path
/// under which mkfs finds the folder when it reads the files.
///
/// The form knows directories, files, links, FIFOs and devices with owner and a three-digit mode
/// and nothing else: no sticky bit, which is dropped, no extended attributes, no hard links (each
/// name becomes a file), no times.
///
/// # Errors
/// A name, link target or source path that holds white space, a name that starts with a colon (a
/// comment) or is `$` (the end of a folder), or a socket.
pub fn xfs_prototype(content: &Path, sources: &Path) -> Result<Vec<u8>> {
    let mut text = b"prototype\n0 0\n".to_vec();
    let root = fs::metadata(content).with_context(|| format!("look at {}", content.display()))?;
    text.extend_from_slice(prototype_mode('d', &root).as_bytes());
    text.push(b'\n');
    prototype_folder(content, sources, &mut text)?;
    text.extend_from_slice(b"$\n");
    Ok(text)
}

fn prototype_folder(folder: &Path, sources: &Path, text: &mut Vec<u8>) -> Result<()> {
    let mut entries = BTreeMap::new();
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry?;
        entries.insert(entry.file_name().into_vec(), entry.path());
    }
    for (name, path) in entries {
        let source = sources.join(OsStr::from_bytes(&name));
        if name.starts_with(b":") || name == b"$" {
            bail!("a prototype file can not say the name {path:?}");
        }
        let meta = fs::symlink_metadata(&path)?;
        let kind = meta.file_type();
        let (letter, rest) = if kind.is_dir() {
            ('d', Vec::new())
        } else if kind.is_file() {
            ('-', source.as_os_str().as_bytes().to_vec())
        } else if kind.is_symlink() {
            ('l', fs::read_link(&path)?.into_os_string().into_vec())
        } else if kind.is_fifo() {
            ('p', Vec::new())
        } else if kind.is_char_device() || kind.is_block_device() {
            let (major, minor) =
                (nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev()));
            (if kind.is_char_device() { 'c' } else { 'b' }, format!("{major} {minor}").into_bytes())
        } else {
            bail!("a prototype file can not say the socket {path:?}");
        };
        let device = matches!(letter, 'b' | 'c');
        let spaced = |bytes: &[u8]| bytes.iter().any(u8::is_ascii_whitespace);
        if spaced(&name) || (!device && spaced(&rest)) {
            bail!("a prototype file can not say the white space in {path:?}");
        }
        text.extend_from_slice(&name);
        text.push(b' ');
        text.extend_from_slice(prototype_mode(letter, &meta).as_bytes());
        if !rest.is_empty() {
            text.push(b' ');
            text.extend_from_slice(&rest);
        }
        text.push(b'\n');
        if letter == 'd' {
            prototype_folder(&path, &source, text)?;
            text.extend_from_slice(b"$\n");
        }
    }
    Ok(())
}

/// Kind, set-user-id, set-group-id, permission digits, owner, group: `d--755 0 0`.
fn prototype_mode(letter: char, meta: &fs::Metadata) -> String {
    let mode = meta.mode();
    let user = if mode & 0o4000 != 0 { 'u' } else { '-' };
    let group = if mode & 0o2000 != 0 { 'g' } else { '-' };
    format!("{letter}{user}{group}{:03o} {} {}", mode & 0o777, meta.uid(), meta.gid())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A folder with a file, a folder and a link in it.
    fn content() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("temporary folder");
        let root = dir.path();
        fs::create_dir(root.join("etc")).expect("mkdir");
        fs::write(root.join("etc/motd"), "hello\n").expect("write");
        fs::set_permissions(root.join("etc/motd"), fs::Permissions::from_mode(0o4640))
            .expect("chmod");
        symlink("/etc/shadow", root.join("link")).expect("symlink");
        dir
    }

    fn text(output: Vec<u8>) -> String {
        String::from_utf8_lossy(&output).into_owned()
    }

    fn blkid(image: &Path) -> String {
        text(
            run(command("blkid").expect("blkid").args(["-p", "-o", "export"]).arg(image))
                .expect("blkid"),
        )
    }

    #[test]
    fn ext_images_hold_the_folder_and_are_the_same_every_time() {
        let (content, out) = (content(), tempfile::tempdir().expect("temporary folder"));
        for (kind, name) in [(Ext::Ext2, "ext2"), (Ext::Ext3, "ext3"), (Ext::Ext4, "ext4")] {
            let image = Image::new(out.path(), name, 16 * MIB).label("evidence");
            let path = image.ext(kind, content.path()).expect("build");
            let first = fs::read(&path).expect("read");
            assert!(blkid(&path).contains(&format!("TYPE={name}")), "{name}");
            assert!(blkid(&path).contains("UUID=c1ea0000-0000-4000-8000-000000000001"));
            let names =
                text(run(command("fls").expect("fls").args(["-r", "-p"]).arg(&path)).expect("fls"));
            assert!(names.contains("etc/motd") && names.contains("link"), "{names}");
            image.ext(kind, content.path()).expect("build again");
            assert!(first == fs::read(&path).expect("read"), "{name} differs");
        }
    }

    #[test]
    fn ext4_files_keep_mode_and_content() {
        let (content, out) = (content(), tempfile::tempdir().expect("temporary folder"));
        let path = Image::new(out.path(), "a.img", 16 * MIB)
            .ext(Ext::Ext4, content.path())
            .expect("build");
        let ask = |request: &str| {
            text(
                run(command("debugfs").expect("debugfs").args(["-R", request]).arg(&path))
                    .expect("debugfs"),
            )
        };
        assert_eq!(ask("cat /etc/motd"), "hello\n");
        assert!(ask("stat /etc/motd").contains("Mode:  04640"));
    }

    #[test]
    fn xfs_images_hold_the_folder() {
        let (content, out) = (content(), tempfile::tempdir().expect("temporary folder"));
        let path = Image::new(out.path(), "x.img", XFS_MIN).xfs(content.path()).expect("build");
        assert!(blkid(&path).contains("TYPE=xfs"));
        let mut db = command("xfs_db").expect("xfs_db");
        let names =
            text(run(db.args(["-r", "-c", "ls /", "-c", "ls /etc"]).arg(&path)).expect("xfs_db"));
        assert!(names.contains("motd") && names.contains("symlink"), "{names}");
        run(command("xfs_repair").expect("xfs_repair").arg("-n").arg(&path)).expect("consistent");
    }

    #[test]
    fn btrfs_fat_ntfs_and_swap_are_recognised() {
        let (content, out) = (content(), tempfile::tempdir().expect("temporary folder"));
        let image = |name: &str, size| Image::new(out.path(), name, size);
        let path = image("b", BTRFS_MIN).btrfs(content.path()).expect("btrfs");
        assert!(blkid(&path).contains("TYPE=btrfs"));
        let path = image("v", 16 * MIB).vfat(content.path()).expect("vfat");
        assert!(blkid(&path).contains("TYPE=vfat") && blkid(&path).contains("UUID=C1EA-0000"));
        let listing = text(
            run(command("mdir").expect("mdir").arg("-i").arg(&path).args(["-b", "-/", "::/"]))
                .expect("mdir"),
        );
        assert!(listing.contains("::/etc/motd"), "{listing}");
        let path = image("n", 8 * MIB).ntfs(&[content.path().join("etc/motd")]).expect("ntfs");
        assert!(blkid(&path).contains("TYPE=ntfs"));
        let names = text(run(command("fls").expect("fls").arg(&path)).expect("fls"));
        assert!(names.contains("motd"), "{names}");
        let path = image("s", MIB).swap().expect("swap");
        assert!(blkid(&path).contains("TYPE=swap"));
    }

    #[test]
    fn prototype_says_modes_owners_sources_and_targets() {
        let content = content();
        let meta = fs::metadata(content.path()).expect("metadata");
        let owner = format!("{} {}", meta.uid(), meta.gid());
        let root_mode = prototype_mode('d', &meta);
        let folder_mode =
            prototype_mode('d', &fs::metadata(content.path().join("etc")).expect("metadata"));
        let text = text(xfs_prototype(content.path(), Path::new("/s")).expect("prototype"));
        let want = format!(
            "prototype\n0 0\n{root_mode}\netc {folder_mode}\nmotd -u-640 {owner} /s/etc/motd\n$\n\
             link l--777 {owner} /etc/shadow\n$\n"
        );
        assert_eq!(text, want);
    }

    #[test]
    fn prototype_refuses_what_it_can_not_say() {
        for name in ["two words", ":comment", "$"] {
            let dir = tempfile::tempdir().expect("temporary folder");
            fs::write(dir.path().join(name), "").expect("write");
            assert!(xfs_prototype(dir.path(), dir.path()).is_err(), "{name}");
        }
    }
}
