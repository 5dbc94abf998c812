//! The few system calls for evidence that no library of ours wraps.
//!
//! Purpose: keep every `unsafe` of the agent's mounting in one small file. Touches loop devices and
//! mounts, each call exactly as its manual page says. Never decides anything.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
};

use nix::libc;

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
/// How often another process may take the free loop device before us.
const TRIES: u32 = 64;

/// `struct loop_info64` (linux/loop.h).
#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` (linux/loop.h).
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

nix::ioctl_none_bad!(loop_ctl_get_free, 0x4c82);
nix::ioctl_write_ptr_bad!(loop_configure, 0x4c0a, LoopConfig);
nix::ioctl_write_ptr_bad!(blkroset, 0x125d, libc::c_int);
nix::ioctl_read_bad!(blkgetsize64, 0x8008_1272, u64);
nix::ioctl_write_int_bad!(blkraset, 0x1262);
nix::ioctl_write_ptr_bad!(btrfs_forget, 0x5000_9405, [u8; 4096]);

/// A loop device that shows a part of a file. It goes when its last user goes.
#[derive(Debug)]
pub(super) struct Loop {
    /// `/dev/loopN`.
    pub path: String,
    /// Open for reading, and held until a mount or a mapping holds the device itself.
    pub device: File,
}

/// What may be done through a loop device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Evidence.
    ReadOnly,
    /// Scratch.
    Writable,
    /// Scratch, past the page cache of the file below, which has one above already.
    WritableDirect,
}

/// Shows `length` bytes of `backing` from `offset` on as a block device of `sector`-byte blocks.
#[expect(unsafe_code, reason = "ioctls of loop(4)")]
pub(super) fn attach_loop(
    backing: BorrowedFd<'_>,
    (offset, length): (u64, u64),
    sector: u32,
    access: Access,
) -> io::Result<Loop> {
    let flags = match access {
        Access::ReadOnly => LO_FLAGS_READ_ONLY,
        Access::Writable => 0,
        Access::WritableDirect => LO_FLAGS_DIRECT_IO,
    };
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..TRIES {
        // SAFETY: the request takes no argument.
        let number = unsafe { loop_ctl_get_free(control.as_raw_fd()) }?;
        let path = format!("/dev/loop{number}");
        // A device that was not opened for writing is configured read-only whatever the flags say.
        let device = File::options().read(true).write(access != Access::ReadOnly).open(&path)?;
        let config = LoopConfig {
            fd: u32::try_from(backing.as_raw_fd()).map_err(io::Error::other)?,
            block_size: sector,
            info: LoopInfo64 {
                device: 0,
                inode: 0,
                rdevice: 0,
                offset,
                size_limit: length,
                number: 0,
                encrypt_type: 0,
                encrypt_key_size: 0,
                flags: flags | LO_FLAGS_AUTOCLEAR,
                file_name: [0; 64],
                crypt_name: [0; 64],
                encrypt_key: [0; 32],
                init: [0; 2],
            },
            reserved: [0; 8],
        };
        // SAFETY: `config` is a live `struct loop_config`, laid out as the kernel's.
        match unsafe { loop_configure(device.as_raw_fd(), &raw const config) } {
            // Kernels may refuse to mount what somebody has open for writing.
            Ok(_) if access != Access::ReadOnly => {
                return Ok(Loop { device: File::open(&path)?, path });
            }
            Ok(_) => return Ok(Loop { path, device }),
            // Somebody else took this one.
            Err(nix::Error::EBUSY) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other("no loop device stayed free long enough to take it"))
}

/// The size of a block device in bytes.
#[expect(unsafe_code, reason = "ioctl BLKGETSIZE64")]
pub(super) fn device_size(device: BorrowedFd<'_>) -> io::Result<u64> {
    let mut size = 0;
    // SAFETY: the request writes one u64.
    unsafe { blkgetsize64(device.as_raw_fd(), &raw mut size) }?;
    Ok(size)
}

/// Makes the kernel refuse every write to a block device, whoever sends it.
#[expect(unsafe_code, reason = "ioctl BLKROSET")]
pub(super) fn set_read_only(device: BorrowedFd<'_>) -> io::Result<()> {
    let on = 1;
    // SAFETY: the request reads one int.
    unsafe { blkroset(device.as_raw_fd(), &raw const on) }?;
    Ok(())
}

/// Sets how far the kernel reads ahead on a device.
#[expect(unsafe_code, reason = "ioctl BLKRASET")]
pub(super) fn read_ahead(device: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    let sectors = i32::try_from(bytes / 512).map_err(io::Error::other)?;
    // SAFETY: the request takes a number of sectors by value.
    unsafe { blkraset(device.as_raw_fd(), sectors) }?;
    Ok(())
}

/// One command of the device mapper (linux/dm-ioctl.h): `message` begins with a `struct dm_ioctl`, whose
/// `data_size` is set here, and takes the answer.
#[expect(unsafe_code, reason = "ioctls of the device mapper")]
pub(super) fn map_devices(
    control: BorrowedFd<'_>,
    command: u8,
    message: &mut [u8; MAP_MESSAGE],
) -> io::Result<()> {
    let size = u32::try_from(message.len()).map_err(io::Error::other)?;
    message[12..16].copy_from_slice(&size.to_ne_bytes());
    let request = nix::request_code_readwrite!(0xfd_u8, command, MAP_HEAD);
    // SAFETY: the kernel reads and writes at most the `data_size` bytes that `message` has.
    let done = unsafe { libc::ioctl(control.as_raw_fd(), request, message.as_mut_ptr()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Bytes of a `struct dm_ioctl`.
pub(super) const MAP_HEAD: usize = 312;
/// Room for one target and what it says.
pub(super) const MAP_MESSAGE: usize = 4096;

/// Makes btrfs forget the devices that are not mounted, so that a second file system with the UUID of
/// one seen before can be mounted.
#[expect(unsafe_code, reason = "ioctl BTRFS_IOC_FORGET_DEV")]
pub(super) fn forget_btrfs_devices() -> io::Result<()> {
    let control = File::options().read(true).write(true).open("/dev/btrfs-control")?;
    let all = [0; 4096];
    // SAFETY: the request reads a `struct btrfs_ioctl_vol_args`, which is 4,096 bytes.
    unsafe { btrfs_forget(control.as_raw_fd(), &raw const all) }?;
    Ok(())
}

/// Makes a detached mount, and those below it, read-only and inert.
#[expect(unsafe_code, reason = "mount_setattr(2)")]
pub(super) fn lock_mount(mount: impl AsFd) -> io::Result<()> {
    let set = libc::MOUNT_ATTR_RDONLY
        | libc::MOUNT_ATTR_NOSUID
        | libc::MOUNT_ATTR_NODEV
        | libc::MOUNT_ATTR_NOEXEC
        | libc::MOUNT_ATTR_NOATIME;
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: libc::MOUNT_ATTR__ATIME,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is a C string, the attributes live and their size is given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
