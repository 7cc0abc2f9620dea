//! Compiles programs in C, with the library, and patch objects for them.
#![allow(dead_code, reason = "not every program needs everything")]

use klp_ed25519::SecretKey;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// What functions need that can be patched.
pub(crate) const PADS: [&str; 3] = [
    "-fpatchable-function-entry=16",
    "-fno-ipa-ra",
    "-fno-function-sections",
];

/// The C files of this package.
pub(crate) fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Where everything is made, with the library in it under its own name.
pub(crate) struct Workshop(TempDir);

impl Workshop {
    pub(crate) fn new() -> Self {
        let folder = TempDir::new().expect("there is room for files");
        for name in ["libklp.so", "libklp.so.0"] {
            let link = folder.path().join(name);
            std::os::unix::fs::symlink(library("libklp.so"), link).expect("it is empty");
        }
        Self(folder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The library, to be preloaded.
    pub(crate) fn libklp(&self) -> PathBuf {
        self.path("libklp.so")
    }

    /// Runs a compiler on a file of the package.
    pub(crate) fn compile<S: AsRef<OsStr>>(
        &self,
        compiler: &str,
        from: &str,
        to: &str,
        args: impl IntoIterator<Item = S>,
    ) -> PathBuf {
        let to = self.path(to);
        let klp_build = klp_build::include_dir();
        let output = Command::new(compiler)
            .args(["-O2", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"])
            .arg("-I")
            .arg(source("include"))
            .arg("-I")
            .arg(source("../os-linux/include"))
            .arg("-I")
            .arg(klp_build)
            .arg(source(from))
            .arg("-o")
            .arg(&to)
            .args(args)
            .output()
            .expect("there is a compiler");
        assert!(output.status.success(), "{from}: {}", said(&output));
        to
    }

    /// An object file with entry pads.
    pub(crate) fn patchable(&self, from: &str) -> PathBuf {
        let to = format!("{}.o", name_of(from));
        self.compile("cc", from, &to, [&PADS[..], &["-c"]].concat())
    }

    /// A patch object.
    pub(crate) fn patch(&self, from: &str) -> PathBuf {
        let name = name_of(from);
        let flags = ["-fPIC", "-ffunction-sections", "-c"];
        let object = self.compile("cc", from, &format!("{name}.o"), flags);
        let object = std::fs::read(object).expect("just written");
        let patch = klp_build::convert(&object).expect("it converts");
        let path = self.path(&format!("{name}.ko"));
        std::fs::write(&path, patch).expect("there is room");
        path
    }

    /// A folder with one key in it, and how that key signs a patch object.
    pub(crate) fn keys(&self) -> (PathBuf, impl Fn(&Path) -> PathBuf) {
        let key = SecretKey::new([1; 32]).expect("a key");
        let folder = self.path("keys");
        std::fs::create_dir_all(&folder).expect("there is room");
        let public = key.public().expect("a strong key").to_pem();
        std::fs::write(folder.join("mine.pub"), public).expect("there is room");
        let sign = move |object: &Path| {
            let mut bytes = std::fs::read(object).expect("it is there");
            bytes.extend(key.sign(&bytes).expect("it is not signed"));
            let signed = object.with_extension("signed.ko");
            std::fs::write(&signed, bytes).expect("there is room");
            signed
        };
        (folder, sign)
    }

    /// A program that is linked with the shared library, and with an object file.
    pub(crate) fn shared(&self, from: &str, object: &Path) -> PathBuf {
        let folder = self.0.path().display().to_string();
        let object = object.display().to_string();
        let args = [
            &*object,
            &format!("-L{folder}"),
            &format!("-Wl,-rpath,{folder}"),
            "-lklp",
            "-lpthread",
        ];
        self.compile("cc", from, &format!("{}_shared", name_of(from)), args)
    }

    /// The same, with the static library.
    pub(crate) fn fixed(&self, from: &str, object: &Path) -> PathBuf {
        let object = object.display().to_string();
        let library = library("libklp.a").display().to_string();
        let args = [&*object, &library, "-lpthread", "-ldl", "-lm"];
        self.compile("cc", from, &format!("{}_static", name_of(from)), args)
    }
}

fn name_of(path: &str) -> String {
    let name = Path::new(path).file_stem().expect("it has a name");
    name.to_string_lossy().into_owned()
}

/// What cargo has made of this package: beside the test's own program.
fn library(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("it runs");
    let path = own.with_file_name(name);
    assert!(path.exists(), "{}: cargo makes it", path.display());
    path
}

/// Both outputs.
pub(crate) fn said(output: &Output) -> String {
    let both = [&*output.stdout, &*output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}
