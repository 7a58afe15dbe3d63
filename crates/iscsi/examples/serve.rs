//! Serves one disk over iSCSI: for judges and for trying.
//!
//! `serve [--listen ADDR:PORT] [--iqn NAME] [--chap NAME:SECRET
//! [--mutual NAME:SECRET]] [--thick] [--read-only] [--removable] [--copy]
//! (FILE | --ram MIB)`
//!
//! With `--copy` nothing is sent from where it lies mapped. Memory is then a
//! [`disk::Ram`], whose writes are all or nothing (WRITE ATOMIC).

// The file is mapped, so that its bytes are sent without a copy.
#![allow(unsafe_code)]

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use disk::{Access, Disk, DiskError, Durability, Geometry, Ram, Raw, Segment, SharedDisk};
use iscsi::{
    Attachment, Authentication, ChapSecrets, Identity, Limits, LogicalUnit, Login, LoginRefusal,
    Medium, Provisioning, Secret, Server, Shape, Target, Targets,
};

fn main() {
    if let Err(message) = run() {
        eprintln!("serve: {message}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), String> {
    let options = Options::parse()?;
    let disk: SharedDisk = match (&options.file, options.ram_mib) {
        (Some(path), _) if !options.copies => {
            let raw = Raw::open(Path::new(path), options.shape.access);
            Arc::new(raw.map_err(|error| error.to_string())?)
        }
        (None, Some(mib)) if options.copies => {
            let bytes = usize::try_from(mib << 20).map_err(|error| error.to_string())?;
            Arc::new(Ram::new(bytes))
        }
        _ => Arc::new(Mapped::open(&options)?),
    };
    let unit = LogicalUnit::shaped(
        disk,
        Identity::new(*b"serve-one-disk-1", "EXAMPLE"),
        options.shape,
    );
    let target = Arc::new(Target::of_one(options.iqn.clone(), Arc::new(unit)));
    let site = Arc::new(Site {
        target,
        chap: options.chap,
        mutual: options.mutual,
    });
    let server = Server::bind(&[options.listen], site, Limits::default())
        .map_err(|error| format!("listening on {}: {error}", options.listen))?;
    println!("iscsi://{}/{}/0", server.portals()[0], options.iqn);
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

struct Options {
    listen: SocketAddr,
    iqn: String,
    chap: Option<(String, String)>,
    mutual: Option<(String, String)>,
    shape: Shape,
    copies: bool,
    ram_mib: Option<u64>,
    file: Option<String>,
}

impl Options {
    fn parse() -> Result<Options, String> {
        let mut options = Options {
            listen: "127.0.0.1:3260".parse().map_err(|e| format!("{e}"))?,
            iqn: "iqn.2026-01.lab:serve".to_owned(),
            chap: None,
            mutual: None,
            shape: Shape::default(),
            copies: false,
            ram_mib: None,
            file: None,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                "--listen" => {
                    let text = value()?;
                    options.listen = text.parse().map_err(|e| format!("{text}: {e}"))?;
                }
                "--iqn" => options.iqn = value()?,
                "--chap" => options.chap = Some(name_and_secret(&value()?)?),
                "--mutual" => options.mutual = Some(name_and_secret(&value()?)?),
                "--thick" => options.shape.provisioning = Provisioning::Full,
                "--read-only" => options.shape.access = Access::ReadOnly,
                "--removable" => options.shape.medium = Medium::Removable,
                "--copy" => options.copies = true,
                "--ram" => {
                    let text = value()?;
                    options.ram_mib = Some(text.parse().map_err(|e| format!("{text}: {e}"))?);
                }
                _ => options.file = Some(argument),
            }
        }
        Ok(options)
    }
}

fn name_and_secret(text: &str) -> Result<(String, String), String> {
    let (name, secret) = text.split_once(':').ok_or("wanted: NAME:SECRET")?;
    Ok((name.to_owned(), secret.to_owned()))
}

struct Site {
    target: Arc<Target>,
    chap: Option<(String, String)>,
    mutual: Option<(String, String)>,
}

impl Targets for Site {
    fn authentication(&self, _: &Login) -> Authentication {
        match self.chap {
            Some(_) => Authentication::Chap,
            None => Authentication::None,
        }
    }

    fn chap_secret(&self, _: &Login, chap_name: &str) -> Option<ChapSecrets> {
        let (name, secret) = self.chap.as_ref()?;
        let mutual = self.mutual.as_ref();
        (name == chap_name).then(|| ChapSecrets {
            initiator: Secret::new(secret.as_bytes()),
            target: mutual.map(|(name, secret)| (name.clone(), Secret::new(secret.as_bytes()))),
        })
    }

    fn open(&self, login: &Login) -> Result<Attachment, LoginRefusal> {
        if login.target.as_ref() != Some(&self.target.name) {
            return Err(LoginRefusal::NotFound);
        }
        Ok(Attachment {
            target: self.target.clone(),
            guard: Box::new(()),
        })
    }

    fn discover(&self, _: &Login) -> Vec<String> {
        vec![self.target.name.clone()]
    }
}

/// A file (or anonymous memory), read through a mapping, written by `pwrite`.
struct Mapped {
    file: File,
    start: *const u8,
    size_bytes: u64,
    copies: bool,
    is_ram: bool,
}

// SAFETY: the mapping is only read, and only by the kernel.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    fn open(options: &Options) -> Result<Mapped, String> {
        let said = |error: std::io::Error| error.to_string();
        let file = match (&options.file, options.ram_mib) {
            (Some(path), _) => File::options()
                .read(true)
                .write(true)
                .open(path)
                .map_err(|error| format!("{path}: {error}"))?,
            (None, Some(mib)) => {
                // SAFETY: a literal name; the descriptor is ours alone.
                let file = unsafe {
                    use std::os::fd::FromRawFd;
                    let fd = libc::memfd_create(c"disk".as_ptr(), 0);
                    if fd < 0 {
                        return Err(said(std::io::Error::last_os_error()));
                    }
                    File::from_raw_fd(fd)
                };
                file.set_len(mib << 20).map_err(said)?;
                file
            }
            (None, None) => return Err("name a FILE, or --ram MIB".to_owned()),
        };
        let size_bytes = file.metadata().map_err(said)?.len() / 512 * 512;
        // SAFETY: a new shared mapping, read only, never unmapped.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                usize::try_from(size_bytes).unwrap_or(usize::MAX),
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(said(std::io::Error::last_os_error()));
        }
        Ok(Mapped {
            file,
            start: start.cast(),
            size_bytes,
            copies: options.copies,
            is_ram: options.file.is_none(),
        })
    }

    fn check(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.size_bytes => Ok(()),
            _ => Err(DiskError::OutOfRange {
                offset,
                bytes,
                size_bytes: self.size_bytes,
            }),
        }
    }
}

fn failed(context: &str) -> impl FnOnce(std::io::Error) -> DiskError + use<'_> {
    move |source| DiskError::Io {
        context: context.to_owned(),
        source,
    }
}

fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

impl Disk for Mapped {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.size_bytes,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
        }
    }

    fn access(&self) -> Access {
        Access::ReadWrite
    }

    fn durability(&self) -> Durability {
        match self.is_ram {
            true => Durability::Volatile,
            false => Durability::WriteBack,
        }
    }

    fn is_thin(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.check(offset, length(buffer.len()))?;
        self.file
            .read_exact_at(buffer, offset)
            .map_err(failed("read"))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.check(offset, length(data.len()))?;
        self.file
            .write_all_at(data, offset)
            .map_err(failed("write"))
    }

    fn flush(&self) -> Result<(), DiskError> {
        match self.is_ram {
            true => Ok(()),
            false => self.file.sync_data().map_err(failed("fdatasync")),
        }
    }

    fn unmap(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        self.check(offset, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let (offset, bytes) = (offset.cast_signed(), bytes.cast_signed());
        // SAFETY: a system call on our own descriptor; touches no memory.
        let result = unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, bytes) };
        match result {
            0 => Ok(()),
            _ => Err(failed("fallocate")(std::io::Error::last_os_error())),
        }
    }

    fn segments<'a>(
        &'a self,
        offset: u64,
        bytes: u64,
        segments: &mut Vec<Segment<'a>>,
    ) -> Result<bool, DiskError> {
        self.check(offset, bytes)?;
        if self.copies {
            return Ok(false);
        }
        let (Ok(offset), Ok(bytes)) = (usize::try_from(offset), usize::try_from(bytes)) else {
            return Ok(false);
        };
        segments.push(Segment::new(self.start.wrapping_add(offset), bytes));
        Ok(true)
    }

    fn will_need(&self, offset: u64, bytes: u64) {
        let page = 4095;
        let from = offset & !page;
        let (Ok(at), Ok(length)) = (
            usize::try_from(from),
            usize::try_from(offset + bytes - from),
        ) else {
            return;
        };
        let start = self.start.wrapping_add(at).cast_mut().cast();
        // SAFETY: advice on a part of our own mapping.
        unsafe { libc::madvise(start, length, libc::MADV_WILLNEED) };
    }
}
