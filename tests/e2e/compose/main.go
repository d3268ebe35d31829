// SPDX-License-Identifier: Apache-2.0

// Loads a compose file as `docker compose config` does, with its library, and prints it whole.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
)

func main() {
	options, err := cli.NewProjectOptions(os.Args[1:], cli.WithName("otelbpf"))
	if err != nil {
		fail(err)
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		fail(err)
	}
	whole, err := project.MarshalJSON()
	if err != nil {
		fail(err)
	}
	fmt.Println(string(whole))
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
