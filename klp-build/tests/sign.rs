//! `klp-build keygen`, `sign` and `verify`; and OpenSSL, which knows nothing of them.

mod common;

use common::klp_build;
use klp_core::elf::signature;
use klp_core::port::{Distrust, Verifier};
use klp_ed25519::{Keys, PublicKey};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use tempfile::TempDir;

/// A folder with a patch object, `fix.ko`, and a pair of keys, `mine`.
struct Workshop(TempDir);

impl Workshop {
    fn new() -> Self {
        let workshop = Self(tempfile::tempdir().expect("a folder"));
        for number in [1, 2] {
            let source = format!("int answer(void) {{ return {number}; }}");
            std::fs::write(workshop.path(&format!("{number}.c")), source).expect("room");
            let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
            let object = format!("{number}.o");
            let arguments = ["-O2", "-ffunction-sections", "-c", "-o", &object];
            let mut compile = Command::new(compiler);
            compile.current_dir(workshop.0.path()).args(arguments);
            let status = compile.arg(format!("{number}.c")).status();
            assert!(status.expect("a C compiler").success());
        }
        workshop.good(&["-o", "fix.ko", "1.o", "2.o"]);
        workshop.good(&["keygen", "mine"]);
        workshop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).expect("it is there")
    }

    fn run(&self, mut command: Command, arguments: &[&str]) -> Output {
        command.current_dir(self.0.path()).args(arguments);
        command.output().expect("it runs")
    }

    fn good(&self, arguments: &[&str]) -> String {
        let output = self.run(klp_build(), arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn bad(&self, arguments: &[&str], why: &str) {
        let output = self.run(klp_build(), arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(said.contains(why), "{said}");
    }

    fn keys(&self) -> Keys {
        let text = String::from_utf8(self.bytes("mine.pub")).expect("text");
        let mut keys = Keys::new();
        keys.add(PublicKey::from_pem(&text).expect("a key"))
            .expect("there is room");
        keys
    }

    fn mode(&self, name: &str) -> u32 {
        let found = std::fs::metadata(self.path(name)).expect("it is there");
        found.permissions().mode() & 0o777
    }
}

#[test]
fn what_is_signed_is_verified() {
    let workshop = Workshop::new();
    let object = workshop.bytes("fix.ko");
    let key = workshop.keys().ids().next().expect("one");
    let said = format!("fix.ko: signed with key {key}\n");

    workshop.bad(
        &["verify", "--key", "mine.pub", "fix.ko"],
        "it is not signed",
    );
    let sign = ["sign", "--key", "mine.key", "--detached", "fix.ko"];
    assert_eq!(workshop.good(&sign), said);
    assert_eq!(workshop.bytes("fix.ko"), object);
    assert_eq!(
        workshop.good(&["verify", "--key", "mine.pub", "fix.ko"]),
        said
    );
    let detached = workshop.bytes("fix.ko.sig");

    let private = PermissionsExt::from_mode(0o640);
    std::fs::set_permissions(workshop.path("fix.ko"), private).expect("it is ours");
    assert_eq!(
        workshop.good(&["sign", "--key", "mine.key", "fix.ko"]),
        said
    );
    assert_eq!(workshop.mode("fix.ko"), 0o640);
    assert_eq!(workshop.bytes("fix.ko"), [object, detached].concat());
    std::fs::remove_file(workshop.path("fix.ko.sig")).expect("it is there");
    assert_eq!(
        workshop.good(&["verify", "--key", "mine.pub", "fix.ko"]),
        said
    );
    workshop.bad(
        &["sign", "--key", "mine.key", "fix.ko"],
        "it is signed already",
    );
}

#[test]
fn keys_are_made_once_and_kept_secret() {
    let workshop = Workshop::new();
    assert_eq!(workshop.mode("mine.key"), 0o600);
    let (secret, public) = (workshop.bytes("mine.key"), workshop.bytes("mine.pub"));
    workshop.bad(&["keygen", "mine"], "mine.key is there already");
    std::fs::remove_file(workshop.path("mine.key")).expect("it is there");
    workshop.bad(&["keygen", "mine"], "mine.pub is there already");
    assert!(!workshop.path("mine.key").exists(), "nothing was made");
    assert_eq!(workshop.bytes("mine.pub"), public);
    let said = workshop.good(&["keygen", "release.1"]);
    assert!(
        said.starts_with("release.1.key, release.1.pub: key "),
        "{said}"
    );
    assert_ne!(workshop.bytes("release.1.key"), secret);
}

#[test]
fn mistakes() {
    let workshop = Workshop::new();
    workshop.good(&["keygen", "other"]);
    std::fs::write(workshop.path("text"), "no ELF file").expect("there is room");
    for (arguments, why) in [
        (["sign", "--key", "mine.pub", "fix.ko"], "mine.pub"),
        (["sign", "--key", "nowhere", "fix.ko"], "nowhere"),
        (["sign", "--key", "mine.key", "text"], "text: no ELF file"),
        (["sign", "--key", "mine.key", "nowhere"], "nowhere"),
        (["verify", "--key", "mine.key", "fix.ko"], "mine.key"),
    ] {
        workshop.bad(&arguments, why);
    }
    workshop.good(&["sign", "--key", "other.key", "fix.ko"]);
    let why = "which is not trusted here";
    workshop.bad(&["verify", "--key", "mine.pub", "fix.ko"], why);
    let both = [
        "verify",
        "--key",
        "mine.pub",
        "--key",
        "other.pub",
        "fix.ko",
    ];
    workshop.good(&both);
    // Verbs take no options of what makes patches, and the other way round.
    let mixed = ["-o", "x.ko", "sign", "--key", "mine.key", "fix.ko"];
    let output = workshop.run(klp_build(), &mixed);
    assert_eq!(output.status.code(), Some(2));
    let nothing = workshop.run(klp_build(), &[]);
    assert_eq!(nothing.status.code(), Some(2));
}

#[test]
fn every_byte_counts() {
    let workshop = Workshop::new();
    workshop.good(&["sign", "--key", "mine.key", "fix.ko"]);
    let (keys, mut file) = (workshop.keys(), workshop.bytes("fix.ko"));
    for at in 0..file.len() {
        let bit = 1 << (at % 8);
        file[at] ^= bit;
        let why = keys.verify(&file).map(|_| ());
        let of_object = at < file.len() - signature::LEN;
        assert!(
            match why {
                Err(Distrust::Changed(_)) => true,
                Err(Distrust::Damaged(_) | Distrust::UnknownKey(_)) => !of_object,
                _ => false,
            },
            "byte {at}: {why:?}"
        );
        file[at] ^= bit;
    }
    assert!(keys.verify(&file).is_ok());
}

/// What reads ELF files does not notice the signature.
#[test]
fn it_is_still_an_elf_file() {
    let workshop = Workshop::new();
    let show = || {
        let output = workshop.run(
            Command::new("readelf"),
            &["-SW", "--relocs", "--symbols", "fix.ko"],
        );
        assert!(output.status.success() && output.stderr.is_empty());
        output.stdout
    };
    let before = show();
    workshop.good(&["sign", "--key", "mine.key", "fix.ko"]);
    assert_eq!(show(), before);
}

/// The keys and the signatures are the standard's: another program reads and makes them.
#[test]
fn openssl_agrees() {
    let workshop = Workshop::new();
    let object = workshop.bytes("fix.ko");
    let openssl = |arguments: &[&str]| {
        let output = workshop.run(Command::new("openssl"), arguments);
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
        said
    };
    workshop.good(&["sign", "--key", "mine.key", "fix.ko"]);
    let file = workshop.bytes("fix.ko");
    let signed = signature::read(&file).expect("it is signed");
    std::fs::write(workshop.path("message"), signed.message).expect("there is room");
    std::fs::write(workshop.path("signature"), signed.bytes).expect("there is room");
    let verify = "pkeyutl -verify -pubin -inkey mine.pub -rawin -in message -sigfile signature";
    let verify: Vec<_> = verify.split(' ').collect();
    assert!(openssl(&verify).contains("Signature Verified Successfully"));

    // And the other way: OpenSSL's keys sign.
    let generate = "genpkey -algorithm ed25519 -out theirs.key";
    openssl(&generate.split(' ').collect::<Vec<_>>());
    let public = "pkey -in theirs.key -pubout -out theirs.pub";
    openssl(&public.split(' ').collect::<Vec<_>>());
    std::fs::write(workshop.path("again.ko"), &object).expect("there is room");
    workshop.good(&["sign", "--key", "theirs.key", "again.ko"]);
    workshop.good(&["verify", "--key", "theirs.pub", "again.ko"]);
}
