//! A host that has memory for patches, and every symbol that somebody asks for, and executes
//! nothing. Tasks and tracing are the simulated OS's; nobody uses them.

use klp_core::addr::{CodeAddr, TextRange};
use klp_core::port::{
    Arch, CallC, Fill, Image, ImageLayout, Platform, Poke, PortError, PortErrorKind, Relocator,
    Symbol, SymbolResolver, Text, ThreadLocal,
};
use klp_core::sim::SimOs;
use std::ffi::{c_int, c_void};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::marker::PhantomData;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The build-id of every object.
const BUILD_ID: [u8; 4] = [0xab, 0xcd, 0x01, 0x23];

/// Where functions are, and then memory for patches.
const SYMBOLS: u64 = 0x4000_0000;
const IMAGES: u64 = 0x4100_0000;

/// Most bytes of a part of an image: what begins as zeros takes none of the file.
const MOST: u64 = 1 << 20;

/// A host with the machine `M`.
pub(crate) struct Host<M> {
    os: SimOs,
    memory: Mutex<Vec<Part>>,
    machine: PhantomData<fn() -> M>,
}

/// One part of the image.
pub(crate) struct Part {
    pub(crate) range: TextRange,
    pub(crate) bytes: Vec<u8>,
}

impl<M: 'static> Host<M> {
    pub(crate) fn new() -> Self {
        Self {
            os: SimOs::new(),
            memory: Mutex::default(),
            machine: PhantomData,
        }
    }

    fn memory(&self) -> MutexGuard<'_, Vec<Part>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no image is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.memory().is_empty()
    }

    /// All that is in images.
    pub(crate) fn contents(&self) -> Vec<Vec<u8>> {
        self.memory()
            .iter()
            .map(|part| part.bytes.clone())
            .collect()
    }

    /// The `len` bytes at `at`.
    pub(crate) fn bytes(&self, at: CodeAddr, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(at, &mut bytes).expect("it is never refused");
        bytes
    }

    /// Lets `each` have the `len` bytes at `at`, which must be in one part of an image.
    fn with(&self, at: CodeAddr, len: usize, each: impl FnOnce(&mut [u8])) {
        let mut memory = self.memory();
        let found = memory.iter_mut().find_map(|part| {
            let offset = usize::try_from(at.get().checked_sub(part.range.start().get())?).ok()?;
            part.bytes.get_mut(offset..offset.checked_add(len)?)
        });
        each(found.unwrap_or_else(|| panic!("{len} bytes at {at} are outside of the image")));
    }
}

/// No memory for an image.
#[derive(Debug)]
pub(crate) struct Full;

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no memory")
    }
}

impl PortError for Full {
    fn kind(&self) -> PortErrorKind {
        PortErrorKind::NoMemoryInReach
    }
}

fn call_int(_: CodeAddr, _: *mut c_void) -> c_int {
    0
}

fn call_void(_: CodeAddr, _: *mut c_void) {}

// SAFETY: nothing executes here; memory is handed out once.
unsafe impl<M: 'static> Text for Host<M> {
    type Error = Full;
    const CALL_C: Option<CallC> = Some(CallC {
        int: call_int,
        void: call_void,
    });

    fn read(&self, at: CodeAddr, into: &mut [u8]) -> Result<(), Full> {
        self.with(at, into.len(), |bytes| into.copy_from_slice(bytes));
        Ok(())
    }

    unsafe fn poke(&self, _: &[Poke<'_>]) -> Result<(), Full> {
        unreachable!("no function is patched")
    }

    fn alloc(&self, _: TextRange, _: u64, layout: ImageLayout) -> Result<Image, Full> {
        let mut memory = self.memory();
        assert!(memory.is_empty(), "one image at a time");
        let mut next = IMAGES;
        let mut parts = Vec::new();
        for len in [layout.text, layout.rodata, layout.data] {
            let range = TextRange::new(CodeAddr::new(next), len).filter(|_| len <= MOST);
            let range = range.ok_or(Full)?;
            next = range.end().get().next_multiple_of(4096);
            parts.push(range);
        }
        let [text, rodata, data] = parts[..] else {
            unreachable!("three parts")
        };
        memory.extend(parts.into_iter().map(|range| Part {
            range,
            bytes: vec![0; range.len() as usize],
        }));
        Ok(Image { text, rodata, data })
    }

    unsafe fn free(&self, image: Image) {
        let mut memory = self.memory();
        assert_eq!(memory.first().map(|part| part.range), Some(image.text));
        memory.clear();
    }

    unsafe fn fill(&self, batch: &[Fill<'_>]) -> Result<(), Full> {
        for fill in batch {
            let copy = |bytes: &mut [u8]| bytes.copy_from_slice(fill.bytes);
            self.with(fill.at, fill.bytes.len(), copy);
        }
        Ok(())
    }
}

/// Where something is that has this name.
fn place(name: impl Hash) -> CodeAddr {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    CodeAddr::new(SYMBOLS + hasher.finish() % (IMAGES - SYMBOLS - 64) / 16 * 16)
}

// SAFETY: no trait's promise is used, for nothing executes.
unsafe impl<M: 'static> SymbolResolver for Host<M> {
    type Error = Full;

    fn is_loaded(&self, object: &str) -> bool {
        object != "absent"
    }

    fn symbols(&self, object: &str, name: &str, found: &mut dyn FnMut(Symbol)) -> Result<(), Full> {
        let symbol = |nth: u32| Symbol {
            addr: place((object, name, nth)),
            len: 64,
        };
        if self.is_loaded(object) {
            found(symbol(0));
            if name.starts_with("twin") {
                found(symbol(1));
            }
        }
        Ok(())
    }

    fn thread_locals(
        &self,
        object: &str,
        name: &str,
        found: &mut dyn FnMut(ThreadLocal),
    ) -> Result<(), Full> {
        let offset = place((object, name)).get() - SYMBOLS;
        found(ThreadLocal {
            module: 1,
            offset,
            from_thread_pointer: (!name.starts_with("far")).then(|| -(offset as i64)),
        });
        Ok(())
    }

    fn exported(&self, name: &str) -> Result<Option<CodeAddr>, Full> {
        Ok((name != "missing").then(|| place(name)))
    }

    fn function_at(&self, _: CodeAddr) -> Option<TextRange> {
        None
    }

    fn build_id(&self, _: &str, is: &mut dyn FnMut(&[u8])) -> Result<(), Full> {
        is(&BUILD_ID);
        Ok(())
    }
}

// SAFETY: one host that executes nothing.
unsafe impl<M: Arch + Relocator> Platform for Host<M> {
    type Lock = <SimOs as Platform>::Lock;
    type Tracer = <SimOs as Platform>::Tracer;
    type Unwinder = <SimOs as Platform>::Unwinder;
    type Tasks = <SimOs as Platform>::Tasks;
    type Symbols = Self;
    type Text = Self;
    type Arch = M;
    type Relocator = M;

    fn tracer(&self) -> &Self::Tracer {
        self.os.tracer()
    }
    fn unwinder(&self) -> &Self::Unwinder {
        self.os.unwinder()
    }
    fn tasks(&self) -> &Self::Tasks {
        self.os.tasks()
    }
    fn symbols(&self) -> &Self {
        self
    }
    fn text(&self) -> &Self {
        self
    }
}
