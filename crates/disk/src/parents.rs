//! The parents of differencing disks: which files a path in an image may mean.
//!
//! It is the child that names its parent, and a child may come from anywhere:
//! so a path leads only to files inside the child's own directory and the
//! directories an operator has named, symbolic links resolved first. Paths are
//! Windows paths mostly; of one with a drive letter or a server the file name
//! is what is left.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::OpenError;
use crate::health::trouble;

/// Longest chain of parents; Windows ends long before.
const MAX_DEPTH: usize = 64;

/// Files that one of `names` (the best first) may mean, the best first, each
/// once and canonical; the caller asks them who they are.
///
/// Refuses, with the child and the names, when there is none.
pub(crate) fn find(
    child: &Path,
    names: &[String],
    roots: &[PathBuf],
) -> Result<Vec<PathBuf>, OpenError> {
    let mut allowed = Vec::new();
    for root in std::iter::once(&own_directory(child)?).chain(roots) {
        if let Ok(root) = fs::canonicalize(root) {
            allowed.push(root);
        }
    }
    let mut found = Vec::new();
    let mut is_outside = false;
    for path in meanings(names, &allowed) {
        let Ok(path) = fs::canonicalize(path) else {
            continue;
        };
        if !allowed.iter().any(|root| path.starts_with(root)) {
            is_outside = true;
        } else if path.is_file() && !found.contains(&path) {
            found.push(path);
        }
    }
    if !found.is_empty() {
        return Ok(found);
    }
    let named: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    let why = match (named.is_empty(), is_outside) {
        (true, _) => "names none".to_owned(),
        (_, true) => format!(
            "names {}, which lies outside its directory and those that may hold parents",
            named.join(", ")
        ),
        (_, false) => format!(
            "names {}, which is not there: put it beside its child",
            named.join(", ")
        ),
    };
    let advice = format!("{} needs its parent, and {why}", child.display());
    Err(OpenError::Foreign { advice })
}

/// Paths to try: all names as they are, then their file names alone in each of
/// the directories, the first of which is the child's own.
fn meanings(names: &[String], allowed: &[PathBuf]) -> Vec<PathBuf> {
    let names: Vec<String> = names
        .iter()
        .map(|name| name.replace('\\', "/"))
        .filter(|name| !name.is_empty() && !name.contains('\0'))
        .collect();
    let own = allowed.first();
    // On another system's disk or server: only its last part can be here.
    let is_elsewhere = |name: &str| name.starts_with("//") || name.as_bytes().get(1) == Some(&b':');
    let here = names.iter().filter(|name| !is_elsewhere(name));
    let mut paths: Vec<PathBuf> = here.filter_map(|name| Some(own?.join(name))).collect();
    for root in allowed {
        for name in &names {
            let last = name.rsplit(['/', ':']).next().unwrap_or_default();
            if !matches!(last, "" | "." | "..") {
                paths.push(root.join(last));
            }
        }
    }
    paths
}

/// The path from a child to its parent, in Windows' words: `.\base.vhd`.
pub(crate) fn relative(child: &Path, parent: &Path) -> io::Result<String> {
    let parent = fs::canonicalize(parent)?;
    let from = fs::canonicalize(directory(child))?;
    let shared = from
        .components()
        .zip(parent.components())
        .take_while(|(a, b)| a == b)
        .count();
    let mut parts: Vec<&str> = from.components().skip(shared).map(|_| "..").collect();
    if parts.is_empty() {
        parts.push(".");
    }
    for part in parent.components().skip(shared) {
        parts.push(said(part)?);
    }
    Ok(parts.join("\\"))
}

/// The whole path of a parent, with Windows' separators: `\srv\base.vhd`.
pub(crate) fn absolute(parent: &Path) -> io::Result<String> {
    let parent = fs::canonicalize(parent)?;
    let mut path = String::new();
    for part in parent.components().skip(1) {
        path.push('\\');
        path.push_str(said(part)?);
    }
    Ok(path)
}

/// The file name of a parent.
pub(crate) fn name(parent: &Path) -> io::Result<String> {
    let parent = fs::canonicalize(parent)?;
    let last = parent.components().next_back();
    Ok(last.map(said).transpose()?.unwrap_or_default().to_owned())
}

/// A part of a path, where both systems would understand the same by it.
fn said(part: Component<'_>) -> io::Result<&str> {
    let name = part.as_os_str().to_str();
    name.filter(|name| !name.contains(['\\', ':']))
        .ok_or_else(|| {
            let reason = format!("{part:?} cannot stand in the path of a parent");
            io::Error::new(io::ErrorKind::InvalidInput, reason)
        })
}

/// The directory a file lies in, as its path says.
pub(crate) fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// The directory a file lies in, once links are resolved.
fn own_directory(child: &Path) -> Result<PathBuf, OpenError> {
    let path = fs::canonicalize(child)
        .map_err(|e| trouble(format!("looking for the parent of {}", child.display()), e))?;
    Ok(directory(&path))
}

/// Tables of a whole chain, which lie in memory: those of a VHD of 2040 GiB
/// above 31 others.
const TABLES_MAX_BYTES: u64 = 128 << 20;

/// The disks between the one that is asked for and the one that is opened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    paths: Vec<PathBuf>,
    table_bytes: u64,
}

impl Chain {
    /// The chain with one disk more; refuses one that comes again, and more
    /// than anybody makes.
    pub(crate) fn with(&self, path: &Path) -> Result<Chain, OpenError> {
        let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let refused = |why: String| {
            let advice = format!("{} cannot be opened: {why}", path.display());
            Err(OpenError::Foreign { advice })
        };
        if self.paths.contains(&real) {
            return refused("it is its own ancestor".to_owned());
        }
        if self.paths.len() > MAX_DEPTH {
            return refused(format!("more than {MAX_DEPTH} parents lead to it"));
        }
        let mut chain = self.clone();
        chain.paths.push(real);
        Ok(chain)
    }

    /// The same chain with tables in memory; why not, where they are too many.
    pub(crate) fn with_tables(&self, bytes: u64) -> Result<Chain, String> {
        let table_bytes = self.table_bytes.saturating_add(bytes);
        if table_bytes > TABLES_MAX_BYTES {
            return Err(format!(
                "with those of the disks above it {table_bytes} bytes of tables, and \
                 {TABLES_MAX_BYTES} are read"
            ));
        }
        let mut chain = self.clone();
        chain.table_bytes = table_bytes;
        Ok(chain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `pool/child.vhd`, `pool/base.vhd`, `pool/old/base.vhd`, `lib/other.vhd`
    /// and `secret.vhd` above them.
    fn site() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "pool/child.vhd",
            "pool/base.vhd",
            "pool/old/base.vhd",
            "lib/other.vhd",
            "secret.vhd",
        ] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        let child = dir.path().join("pool/child.vhd");
        (dir, child)
    }

    fn found(child: &Path, name: &str, roots: &[PathBuf]) -> Result<Vec<String>, String> {
        find(child, &[name.to_owned()], roots)
            .map(|paths| {
                let text = |path: PathBuf| fs::read_to_string(path).unwrap();
                paths.into_iter().map(text).collect()
            })
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_windows_path_is_found_beside_its_child() {
        let (_dir, child) = site();
        for name in [
            r".\base.vhd",
            "base.vhd",
            r"C:\vms\base.vhd",
            r"\\server\share\base.vhd",
            r"..\pool\base.vhd",
            "C:base.vhd",
        ] {
            assert_eq!(
                found(&child, name, &[]).unwrap(),
                ["pool/base.vhd"],
                "{name}"
            );
        }
        let both = found(&child, r".\old\base.vhd", &[]).unwrap();
        assert_eq!(both, ["pool/old/base.vhd", "pool/base.vhd"]);
    }

    #[test]
    fn no_path_leads_out_of_the_allowed_directories() {
        let (dir, child) = site();
        std::os::unix::fs::symlink(
            dir.path().join("secret.vhd"),
            dir.path().join("pool/link.vhd"),
        )
        .unwrap();
        let secret = dir.path().join("secret.vhd");
        for name in [
            r"..\secret.vhd",
            "../secret.vhd",
            "link.vhd",
            secret.to_str().unwrap(),
        ] {
            let error = found(&child, name, &[]).unwrap_err();
            assert!(error.contains("outside"), "{name}: {error}");
            assert!(
                error.contains("child.vhd") && error.contains("secret.vhd") || name == "link.vhd"
            );
        }
        for name in ["", "..", ".", r"C:\", "none.vhd", "a\0b"] {
            assert!(found(&child, name, &[]).is_err(), "{name:?}");
        }
        let other = dir.path().join("lib/other.vhd");
        let roots = [dir.path().join("lib")];
        for name in [
            r"..\lib\other.vhd",
            r"D:\other.vhd",
            other.to_str().unwrap(),
        ] {
            assert!(found(&child, name, &[]).is_err());
            assert_eq!(
                found(&child, name, &roots).unwrap(),
                ["lib/other.vhd"],
                "{name}"
            );
        }
    }

    #[test]
    fn a_written_path_leads_back() {
        let (dir, child) = site();
        let parent = dir.path().join("pool/base.vhd");
        assert_eq!(relative(&child, &parent).unwrap(), r".\base.vhd");
        let other = dir.path().join("lib/other.vhd");
        assert_eq!(relative(&child, &other).unwrap(), r"..\lib\other.vhd");
        let roots = [dir.path().join("lib")];
        for name in [relative(&child, &other), absolute(&other)] {
            assert_eq!(
                found(&child, &name.unwrap(), &roots).unwrap(),
                ["lib/other.vhd"]
            );
        }
    }

    #[test]
    fn a_chain_without_end_is_refused() {
        let (dir, child) = site();
        let chain = Chain::default().with(&child).unwrap();
        let error = chain
            .with(&dir.path().join("pool/./child.vhd"))
            .unwrap_err();
        assert!(error.to_string().contains("its own ancestor"), "{error}");
        let mut chain = chain;
        let mut depth = 0;
        while let Ok(longer) = chain.with(Path::new(&format!("/none/{depth}"))) {
            (chain, depth) = (longer, depth + 1);
        }
        assert_eq!(depth, MAX_DEPTH);
    }

    #[test]
    fn a_chain_with_more_tables_than_memory_is_for_is_refused() {
        let full = Chain::default().with_tables(TABLES_MAX_BYTES).unwrap();
        let longer = full.with(Path::new("/none/1")).unwrap();
        assert!(longer.with_tables(4).is_err());
        assert!(longer.with_tables(0).is_ok());
    }
}
