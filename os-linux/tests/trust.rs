//! Signed patch objects, and all others, through `klp check` and `klp enable` on the example
//! `server`.

mod server;

use klp_core::elf::signature;
use klp_core::port::KeyId;
use klp_ed25519::SecretKey;
use klp_os_linux::control::{Reply, Request, ask};
use server::{Folder, Server, example};
use std::path::{Path, PathBuf};
use std::process::Command;

fn key(number: u8) -> SecretKey {
    SecretKey::new([number; 32]).expect("not all zero")
}

fn id(number: u8) -> KeyId {
    key(number).public().expect("a strong key").id()
}

/// A folder with the public keys of these.
fn folder_of(numbers: &[u8]) -> Folder {
    let folder = Folder::new();
    for number in numbers {
        let public = key(*number).public().expect("a strong key");
        let path = folder.0.join(format!("{number}.pub"));
        std::fs::write(path, public.to_pem()).expect("there is room");
    }
    folder
}

/// A server that trusts key 1 alone, and its patch.
fn server_with_keys() -> (Server, Vec<u8>) {
    let keys = folder_of(&[1]);
    let server = Server::start_with(10, &["--keys".as_ref(), keys.0.as_ref()]);
    let object = std::fs::read(&server.patch).expect("it was built");
    (server, object)
}

fn signed(number: u8, object: &[u8]) -> Vec<u8> {
    let trailer = key(number).sign(object).expect("it is not signed");
    [object, &trailer].concat()
}

impl Server {
    /// A file beside the server's socket.
    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.0.join(name);
        std::fs::write(&path, bytes).expect("there is room");
        path
    }

    /// What `klp` says of a file, in its last line.
    fn says(&self, verb: &str, file: &Path) -> (String, i32) {
        let (said, code) = self.plain(&[verb, &file.to_string_lossy()]);
        (said.lines().last().unwrap_or_default().to_owned(), code)
    }

    /// What must not change: the patches, and where code is.
    fn state(&self) -> (String, Vec<String>) {
        let (list, code) = self.plain(&["list"]);
        assert_eq!(code, 0, "{list}");
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.process.id()));
        let maps = maps.expect("it runs");
        let code = maps.lines().filter(|line| line.contains("xp "));
        (list, code.map(str::to_owned).collect())
    }

    /// `file` is refused, whatever is asked, and nothing changes.
    fn refuses(&self, file: &Path, errno: i32, why: &str) {
        let before = self.state();
        for verb in ["check", "enable"] {
            let said = self.says(verb, file);
            let name = file.file_stem().and_then(|name| name.to_str());
            let name = name.expect("it has one");
            assert_eq!(said, (format!("klp: patch '{name}': {why}"), 1), "{verb}");
        }
        let request = Request::Check {
            file: file.to_owned(),
        };
        let reply = ask(&self.socket, &request).expect("it answers");
        assert!(
            matches!(&reply, Reply::Refused { errno: number, .. } if *number == -errno),
            "{reply:?}"
        );
        assert_eq!(self.state(), before, "nothing has changed");
    }

    /// `file` is taken, and forgotten again.
    fn takes(&self, file: &Path) {
        let (said, code) = self.says("check", file);
        assert!(
            code == 0 && said.ends_with("it can be enabled"),
            "{code}: {said}"
        );
        let enabled = ("'greeter_fix': enabled".to_owned(), 0);
        assert_eq!(self.says("enable", file), enabled);
        for verb in ["disable", "remove"] {
            let (said, code) = self.plain(&[verb, "greeter_fix"]);
            assert_eq!(code, 0, "{said}");
        }
    }
}

const NOT_SIGNED: &str = "it is not signed, and only signed patches are taken";
const DAMAGED: &str =
    "its signature is damaged: something of it is missing, or changed, or stands behind it";
const NO_SIGNATURE_BESIDE: &str =
    "its signature is damaged: there is something else in the file beside it (.sig)";

fn unknown(number: u8) -> String {
    let id = id(number);
    format!("it is signed with key {id}, which is not trusted here")
}

fn changed(number: u8) -> String {
    let id = id(number);
    format!("its signature with key {id} does not fit: it was changed after it was signed")
}

#[test]
fn signed_patches_are_taken() {
    let (server, object) = server_with_keys();
    server.takes(&server.file("embedded.ko", &signed(1, &object)));
    let path = server.file("detached.ko", &object);
    let trailer = key(1).sign(&object).expect("it is not signed");
    server.file("detached.ko.sig", &trailer);
    server.takes(&path);
}

#[test]
fn others_are_refused() {
    let (server, object) = server_with_keys();
    let good = signed(1, &object);
    let refuses = |bytes: &[u8], errno, why: &str| {
        server.refuses(&server.file("other.ko", bytes), errno, why);
    };
    refuses(&object, libc::ENODATA, NOT_SIGNED);
    refuses(b"not an ELF file", libc::ENODATA, NOT_SIGNED);
    refuses(&signed(2, &object), libc::ENOKEY, &unknown(2));
    refuses(&good[..good.len() - 20], libc::EBADMSG, DAMAGED);
    refuses(&[&good[..], b"\n"].concat(), libc::EBADMSG, DAMAGED);
    // The name of a trusted key under what another has signed.
    let mut pretended = signed(2, &object);
    let at = object.len() + signature::MARK.len();
    pretended[at..at + 32].copy_from_slice(&id(1).0);
    refuses(&pretended, libc::EKEYREJECTED, &changed(1));
    // The name of the patch, a number in its code, and the last byte of the signature.
    let name = object
        .windows(11)
        .position(|bytes| bytes == b"greeter_fix")
        .expect("it has a name");
    for at in [
        name,
        object.len() / 2,
        good.len() - signature::MARK.len() - 1,
    ] {
        let mut file = good.clone();
        file[at] ^= 0x10;
        refuses(&file, libc::EKEYREJECTED, &changed(1));
    }
}

#[test]
fn a_signature_in_a_file_of_its_own() {
    let (server, object) = server_with_keys();
    let file = server.file("fix.ko", &object);
    let trailer = |number| key(number).sign(&object).expect("it is not signed");
    let beside = |bytes: &[u8]| server.file("fix.ko.sig", bytes);

    beside(&trailer(2));
    server.refuses(&file, libc::ENOKEY, &unknown(2));
    beside(&key(1).sign(b"another object").expect("it is not signed"));
    server.refuses(&file, libc::EKEYREJECTED, &changed(1));
    for garbage in [&b""[..], b"x", &trailer(1)[1..], &signed(1, &object)] {
        beside(garbage);
        server.refuses(&file, libc::EBADMSG, NO_SIGNATURE_BESIDE);
    }
    // Of another name.
    let elsewhere = server.file("other.ko", &object);
    beside(&trailer(1));
    server.refuses(&elsewhere, libc::ENODATA, NOT_SIGNED);
    // That of the file itself counts, if there is one.
    std::fs::write(&file, signed(2, &object)).expect("there is room");
    server.refuses(&file, libc::ENOKEY, &unknown(2));
    std::fs::write(&file, &object).expect("there is room");
    server.takes(&file);
}

/// The file is read and verified each time that it is named, also if its patch is known by then.
#[test]
fn what_was_checked_before_is_no_excuse() {
    let (server, object) = server_with_keys();
    let file = server.file("fix.ko", &signed(1, &object));
    let (said, code) = server.says("check", &file);
    assert_eq!(code, 0, "{said}");
    let mut other = signed(1, &object);
    other[object.len() / 2] ^= 1;
    std::fs::write(&file, &other).expect("there is room");
    server.refuses(&file, libc::EKEYREJECTED, &changed(1));

    std::fs::write(&file, signed(1, &object)).expect("there is room");
    let enabled = ("'greeter_fix': enabled".to_owned(), 0);
    assert_eq!(server.says("enable", &file), enabled);
    std::fs::write(&file, &other).expect("there is room");
    server.refuses(&file, libc::EKEYREJECTED, &changed(1));
    std::fs::write(&file, &object).expect("there is room");
    server.refuses(&file, libc::ENODATA, NOT_SIGNED);
    let (said, code) = server.plain(&["list"]);
    assert_eq!((&*said, code), ("'greeter_fix': enabled\n", 0));
}

#[test]
fn a_process_without_keys_says_so_and_takes_everything() {
    let server = Server::start_with(10, &["--log".as_ref()]);
    let said = "livepatch: there are no keys: signatures of patch objects are not verified";
    let times = server.said.iter().filter(|line| line.trim() == said);
    assert_eq!(times.count(), 1, "{:?}", server.said);
    let object = std::fs::read(&server.patch).expect("it was built");
    server.takes(&server.file("signed.ko", &signed(1, &object)));
    server.takes(&server.file("plain.ko", &object));
}

/// Whoever asks for keys does not go without.
#[test]
fn keys_that_cannot_be_read() {
    let (empty, bad) = (folder_of(&[]), folder_of(&[1]));
    std::fs::write(bad.0.join("2.pub"), "nothing").expect("there is room");
    for (folder, why) in [
        (empty.0.clone(), "there are no keys in it"),
        (bad.0.clone(), "2.pub: it is not one ed25519 key"),
        (bad.0.join("nowhere"), "No such file"),
    ] {
        let output = Command::new(example()).arg("--keys").arg(folder).output();
        let output = output.expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(why), "{said}");
    }
}
