//! The function contract: environment, framings and limits (`spec/container-contract.md`). Pure code.
