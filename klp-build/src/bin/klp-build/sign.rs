//! `klp-build keygen`, `sign` and `verify`: who vouches for a patch object.

use crate::read;
use anyhow::{Context, Result, ensure};
use klp_core::elf::signature;
use klp_core::port::{Distrust, Verifier};
use klp_ed25519::{Keys, PublicKey, SecretKey};
use std::fs::{OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Make a pair of keys: NAME.key signs, and is its owner's secret; NAME.pub verifies
#[derive(clap::Args)]
pub(crate) struct Keygen {
    /// What the two files are called, without their endings
    name: PathBuf,
}

/// Sign a patch object
#[derive(clap::Args)]
pub(crate) struct Sign {
    /// The key that signs (NAME.key)
    #[arg(long)]
    key: PathBuf,
    /// Put the signature into a file of its own, OBJECT.sig, instead of behind the object
    #[arg(long)]
    detached: bool,
    /// The patch object
    object: PathBuf,
}

/// Verify the signature of a patch object, or that in OBJECT.sig
#[derive(clap::Args)]
pub(crate) struct Verify {
    /// A key that is trusted (NAME.pub); may be given several times
    #[arg(long, required = true)]
    key: Vec<PathBuf>,
    /// The patch object
    object: PathBuf,
}

impl Keygen {
    pub(crate) fn run(&self) -> Result<String> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).context("there are no random numbers")?;
        let secret = SecretKey::new(seed)?;
        let public = secret.public()?;
        let paths = ["key", "pub"].map(|ending| beside(&self.name, ending));
        let [secret_path, public_path] = &paths;
        for path in &paths {
            let is_free = !path.try_exists().with_context(|| named(path))?;
            ensure!(is_free, "{} is there already", path.display());
        }
        create(secret_path, 0o600, &secret.to_pem())?;
        create(public_path, 0o644, &public.to_pem())?;
        let (secret, public, key) = (secret_path.display(), public_path.display(), public.id());
        Ok(format!("{secret}, {public}: key {key}\n"))
    }
}

impl Sign {
    pub(crate) fn run(&self) -> Result<String> {
        let key = SecretKey::from_pem(&text(&self.key)?).with_context(|| named(&self.key))?;
        let mut object = read(&self.object)?;
        let path = || named(&self.object);
        ensure!(object.starts_with(b"\x7fELF"), "{}: no ELF file", path());
        let trailer = key.sign(&object).with_context(path)?;
        // What was signed is what verifies, or nothing is written.
        let mut keys = Keys::new();
        keys.add(key.public()?)?;
        object.extend(trailer);
        keys.verify(&object).with_context(path)?;
        if self.detached {
            replace(&beside(&self.object, "sig"), &trailer, None)?;
        } else {
            let found = std::fs::metadata(&self.object).with_context(path)?;
            replace(&self.object, &object, Some(found.permissions()))?;
        }
        Ok(format!(
            "{}: signed with key {}\n",
            path(),
            key.public()?.id()
        ))
    }
}

impl Verify {
    pub(crate) fn run(&self) -> Result<String> {
        let mut keys = Keys::new();
        for path in &self.key {
            keys.add(PublicKey::from_pem(&text(path)?).with_context(|| named(path))?)?;
        }
        let object = read_with_signature(&self.object)?;
        let signed = keys.verify(&object).with_context(|| named(&self.object))?;
        Ok(format!(
            "{}: signed with key {}\n",
            named(&self.object),
            signed.key
        ))
    }
}

/// A patch object, with its detached signature behind it if there is one and no other.
pub(crate) fn read_with_signature(path: &Path) -> Result<Vec<u8>> {
    let mut object = read(path)?;
    let detached = beside(path, "sig");
    if signature::read(&object) == Err(Distrust::NotSigned) && detached.exists() {
        object.extend(read(detached)?);
    }
    Ok(object)
}

/// `path` with an ending behind whatever it ends in.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut longer = path.as_os_str().to_owned();
    longer.push(".");
    longer.push(ending);
    longer.into()
}

fn named(path: &Path) -> String {
    path.display().to_string()
}

fn text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| named(path))
}

/// Makes a file that was not there.
fn create(path: &Path, mode: u32, text: &str) -> Result<()> {
    let mut new = OpenOptions::new();
    let made = new.write(true).create_new(true).mode(mode).open(path);
    made.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| named(path))
}

/// Makes a file, or another one in its place, whole or not at all.
fn replace(path: &Path, bytes: &[u8], permissions: Option<Permissions>) -> Result<()> {
    // What a link leads to is replaced, not the link.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let permissions = permissions.unwrap_or_else(|| {
        use std::os::unix::fs::PermissionsExt;
        Permissions::from_mode(0o644)
    });
    let write = || {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().set_permissions(permissions)?;
        file.persist(&path)?;
        Ok::<_, std::io::Error>(())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
