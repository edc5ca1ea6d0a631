//! Values made in the box they are to live in.
//!
//! `Box::new` is handed its value: that is made on the stack and copied from there, as often as not twice. The future of
//! a step with all the steps below it is kilobytes, of which the first poll needs a few words.

use std::pin::Pin;

/// A box with what `make` makes.
#[inline(always)]
pub fn make<T>(make: impl FnOnce() -> T) -> Box<T> {
    // the box first: then there is a place to make it in
    let room = Box::new_uninit();
    Box::write(room, make())
}

/// The same for a future.
#[inline(always)]
pub fn pin<F>(future: impl FnOnce() -> F) -> Pin<Box<F>> {
    Box::into_pin(make(future))
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn what_is_made_is_in_the_box() {
        let text = String::from("here");
        assert_eq!(*super::make(|| text.clone()), "here");
        assert_eq!(super::pin(move || async move { text }).await, "here");
    }
}
