package com.example.fn;

/** The function {{name}}: says hello to the name in the call's body. */
public class HelloFunction {

    public String handleRequest(String input) {
        String name = input == null || input.isBlank() ? "World" : input.strip();
        // What a function writes is the log of the call: `kiln logs APP {{name}}` shows it.
        System.err.println("saying hello to " + name);
        return "Hello, " + name + "!";
    }
}
