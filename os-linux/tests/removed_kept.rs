//! A program asks that removed patches keep their memory.

use klp_os_linux::process::{Livepatch, Options};
use klp_os_linux_fixtures::{ONLY_CALLBACKS, code_of_patch, diary};
use std::sync::Mutex;
use std::time::Duration;

#[test]
fn removed_patches_keep_their_memory_if_the_program_wants_that() {
    static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let livepatch = Livepatch::init(Options {
        events: Some(Box::new(|event| {
            LOG.lock().expect("no panic").push(event.to_string());
        })),
        keep_removed: true,
        ..Options::default()
    })
    .expect("this process can be patched");
    let mut places = Vec::new();
    for removed in 1..=2 {
        let patch = livepatch.load_file(ONLY_CALLBACKS).expect("a patch object");
        livepatch.enable(patch).expect("it fits");
        assert!(livepatch.wait(Duration::from_secs(20)));
        places.push(code_of_patch());
        assert_eq!(diary().len(), 1);
        livepatch.disable(patch).expect("it is enabled");
        assert!(livepatch.wait(Duration::from_secs(20)));
        assert_eq!(diary().len(), 1);
        livepatch.unload(patch).expect("it is disabled");
        assert_eq!(livepatch.engine().find("only_callbacks"), None);
        assert_eq!(livepatch.free_removed(), removed);
        let log = LOG.lock().expect("no panic");
        assert!(
            log.last()
                .is_some_and(|line| line.contains("memory is kept")),
            "{log:?}"
        );
    }
    assert_ne!(places[0], places[1], "the first is still there");
}
