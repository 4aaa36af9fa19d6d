// Command ds01-proxy gives every user of a server a Docker socket of their own.
package main

import (
	"fmt"
	"os"
)

func main() {
	root := newRoot()
	root.SetArgs(asChecked(os.Args))
	if err := root.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "ds01-proxy:", err)
		os.Exit(1)
	}
}
