package com.example.fn

/** The function {{name}}: says hello to the name in the call's body. */
fun hello(input: String): String {
    val name = input.trim().ifEmpty { "World" }
    // What a function writes is the log of the call: `kiln logs APP {{name}}` shows it.
    System.err.println("saying hello to $name")
    return "Hello, $name!"
}
