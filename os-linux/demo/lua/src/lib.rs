//! Lua 5.4.0 as it was in 2020, compiled with an entry pad in each function: something real to
//! patch while it runs.
//!
//! [`EXPLOIT`] kills the process that runs it (CVE-2020-24370), until the patch object [`PATCH`] is
//! enabled.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr::NonNull;

/// The path of the patch object that repairs the hole.
pub const PATCH: &str = env!("KLP_DEMO_LUA_PATCH");

/// The function that the patch replaces.
pub const PATCHED_FUNCTION: &str = "luaG_findlocal";

/// Reads a vararg far outside of the stack. Answers `nil` where the hole is repaired.
pub const EXPLOIT: &str = "return (function(...) return debug.getlocal(1, -2147483648) end)(1)";

/// Reads a local variable, a vararg and a temporary by the function that the patch replaces, as it
/// should. Answers `ok` with the hole and without.
pub const CHECK: &str = r#"
local function names(...)
  local alpha = 7
  local first, value = debug.getlocal(1, 1)
  local vararg, extra = debug.getlocal(1, -2)
  return first == "alpha" and value == 7 and vararg == "(vararg)" and extra == "b"
    and debug.getlocal(1, -4) == nil and debug.getlocal(1, 200) == nil
end
return names("a", "b", "c") and "ok" or "broken"
"#;

/// `LUA_MULTRET`'s opposite: one result, nil if there is none.
const ONE_RESULT: c_int = 1;

#[repr(C)]
struct LuaState {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn luaL_newstate() -> *mut LuaState;
    fn luaL_openlibs(lua: *mut LuaState);
    fn luaL_loadstring(lua: *mut LuaState, source: *const c_char) -> c_int;
    fn luaL_tolstring(lua: *mut LuaState, index: c_int, len: *mut usize) -> *const c_char;
    fn lua_pcallk(
        lua: *mut LuaState,
        arguments: c_int,
        results: c_int,
        handler: c_int,
        context: isize,
        continuation: *const c_void,
    ) -> c_int;
    fn lua_settop(lua: *mut LuaState, index: c_int);
    fn lua_close(lua: *mut LuaState);
}

/// One Lua interpreter.
///
/// # Invariants
///
/// The state is open, and its stack is empty between calls.
#[derive(Debug)]
pub struct Interpreter(NonNull<LuaState>);

// SAFETY: a Lua state may be used by any thread, as long as only one uses it at a time: `&mut self`
// everywhere.
unsafe impl Send for Interpreter {}

impl Interpreter {
    /// An interpreter with Lua's standard library; `None` if there is no memory.
    #[must_use]
    pub fn new() -> Option<Self> {
        // SAFETY: the function takes nothing and returns a new state or null.
        let lua = NonNull::new(unsafe { luaL_newstate() })?;
        // SAFETY: the state is new and ours.
        unsafe { luaL_openlibs(lua.as_ptr()) };
        Some(Self(lua))
    }

    /// Runs `source` and returns what it returns, as text.
    ///
    /// # Errors
    ///
    /// Lua's own error message.
    pub fn run(&mut self, source: &CStr) -> Result<String, String> {
        let lua = self.0.as_ptr();
        // SAFETY: the state is open; the text ends with NUL. Whatever happens, one value is on the
        // stack afterwards: the result, or the error; `text` takes it off.
        unsafe {
            let mut status = luaL_loadstring(lua, source.as_ptr());
            if status == 0 {
                status = lua_pcallk(lua, 0, ONE_RESULT, 0, 0, core::ptr::null());
            }
            let text = Self::text(lua);
            if status == 0 { Ok(text) } else { Err(text) }
        }
    }

    /// The text of the only value on the stack, which is taken off.
    ///
    /// # Safety
    ///
    /// `lua` is open and has one value on its stack, which is not a table or userdata with a
    /// `__tostring` that fails.
    unsafe fn text(lua: *mut LuaState) -> String {
        let mut len = 0;
        // SAFETY: the caller's promise; the text stays alive as long as it is on the stack.
        unsafe {
            let text = luaL_tolstring(lua, -1, &raw mut len);
            let text =
                String::from_utf8_lossy(core::slice::from_raw_parts(text.cast(), len)).into_owned();
            lua_settop(lua, 0);
            text
        }
    }
}

impl Drop for Interpreter {
    fn drop(&mut self) {
        // SAFETY: the state is open, and not used afterwards.
        unsafe { lua_close(self.0.as_ptr()) }
    }
}
