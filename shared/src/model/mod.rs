//! Apps, functions and triggers as the APIs show them, with their validation.
