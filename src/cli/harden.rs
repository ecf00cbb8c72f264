//! What is in a process's memory (keys, prompts, answers) leaves it neither in a core dump nor through `/proc`.

/// No core dumps, and no look into memory or environment by other processes of the same user (`PR_SET_DUMPABLE`). To be
/// called by every process that serves, first of all: a program that is started has its own setting anew.
pub(super) fn keep_memory_private() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "core dumps can't be turned off");
    }
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "this process's memory can be read by others of its user");
    }
}
