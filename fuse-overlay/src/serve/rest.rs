//! A mount that nothing is asked of lets go of the pages that it has mapped.
//!
//! They are the machine's cache, not this process's memory, and stay there; but they count as its own
//! for as long as they are mapped, and after a walk over an image that is all of its index, and of its
//! layers what was read. A thread waits for a second without a request, and again for the next request:
//! where there are none it sleeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long nothing has to be asked: long after whatever a program does between two requests.
const PERIOD: Duration = Duration::from_secs(1);

/// What requests say that they are there by. Costs them one look at a flag.
#[derive(Debug, Default)]
pub(super) struct Activity {
    /// Nothing was asked since the thread has looked.
    idle: AtomicBool,
    ended: AtomicBool,
    thread: std::sync::OnceLock<Thread>,
}

impl Activity {
    /// Called at each use of what is mapped.
    pub(super) fn note(&self) {
        if self.idle.load(Ordering::Relaxed) {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        if self.idle.swap(false, Ordering::Relaxed)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    /// Waits until nothing is asked for a while; false at the end.
    fn wait_for_rest(&self) -> bool {
        loop {
            self.idle.store(true, Ordering::Relaxed);
            let until = Instant::now() + PERIOD;
            loop {
                if self.ended.load(Ordering::Relaxed) {
                    return false;
                }
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                std::thread::park_timeout(left);
            }
            if self.idle.load(Ordering::Relaxed) {
                return true;
            }
        }
    }

    /// Waits until something is asked; false at the end.
    fn wait_for_work(&self) -> bool {
        while self.idle.load(Ordering::Relaxed) {
            if self.ended.load(Ordering::Relaxed) {
                return false;
            }
            std::thread::park();
        }
        true
    }
}

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Rest {
    activity: Arc<Activity>,
    thread: Option<JoinHandle<()>>,
}

impl Rest {
    /// Calls `release` whenever nothing was asked for a while. Without a thread to be had nothing is let
    /// go of, and nothing else is the worse for it.
    pub(super) fn begin(activity: &Arc<Activity>, release: impl Fn() + Send + 'static) -> Self {
        let shared = Arc::clone(activity);
        let work = move || {
            while shared.wait_for_rest() {
                release();
                if !shared.wait_for_work() {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new().name("fuse-rest".into()).spawn(work).ok();
        if let Some(thread) = &thread {
            // Set once for each connection; a filesystem is served once.
            let _ = activity.thread.set(thread.thread().clone());
        }
        Self { activity: Arc::clone(activity), thread }
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.activity.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join(); // it does not panic
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rests_once_for_each_time_of_work() {
        let activity = Arc::new(Activity::default());
        let (sender, receiver) = std::sync::mpsc::channel();
        let rest = Rest::begin(&activity, move || {
            let _ = sender.send(()); // the test has failed already
        });
        assert_eq!(receiver.recv(), Ok(()));
        assert!(receiver.try_recv().is_err());
        activity.note();
        assert_eq!(receiver.recv(), Ok(()));
        drop(rest);
        // The sender has gone with the thread.
        assert!(receiver.recv().is_err());
    }
}
