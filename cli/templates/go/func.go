// The function {{name}}: says hello to the name in the call's body.
package main

import (
	"context"
	"encoding/json"
	"io"
	"log"

	fdk "github.com/fnproject/fdk-go"
)

type request struct {
	Name string `json:"name"`
}

type reply struct {
	Message string `json:"message"`
}

func main() {
	fdk.Handle(fdk.HandlerFunc(hello))
}

func hello(ctx context.Context, in io.Reader, out io.Writer) {
	ask := request{Name: "World"}
	// A body that is not JSON leaves the name as it is.
	if err := json.NewDecoder(in).Decode(&ask); err != nil && err != io.EOF {
		log.Printf("the body is not JSON: %v", err)
	}
	// What a function logs is the log of the call: `kiln logs APP {{name}}` shows it.
	log.Printf("saying hello to %s", ask.Name)
	if err := json.NewEncoder(out).Encode(reply{Message: "Hello " + ask.Name}); err != nil {
		log.Printf("cannot answer: %v", err)
	}
}
