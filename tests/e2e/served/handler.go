// SPDX-License-Identifier: Apache-2.0

// The handler of Go's net/http to probe: handleRequest sleeps for the milliseconds that the path
// starts with (/25/name), and what was sent comes back. Stacks are moved all the time: the handler
// makes its own grow through many sizes, and the garbage collector, which runs all the time, makes
// it small again. A return probe would not survive that.
//
//	handler PORT
//
// go build handler.go
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

const (
	// So many calls with so large frames need some hundred times the stack that there is at first.
	depth      = 400
	frameBytes = 512

	collectEvery = 20 * time.Millisecond
)

//go:noinline
func grow(left int) byte {
	var frame [frameBytes]byte
	frame[left%frameBytes] = byte(left)
	if left == 0 {
		return frame[0]
	}
	return grow(left-1) + frame[left%frameBytes]
}

// What is probed.
//
//go:noinline
func handleRequest(writer http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(request.Body)
	if err != nil {
		return
	}
	first, _, _ := strings.Cut(strings.TrimPrefix(request.URL.Path, "/"), "/")
	if ms, err := strconv.Atoi(first); err == nil {
		time.Sleep(time.Duration(ms) * time.Millisecond)
	}
	// And on another goroutine at the same time.
	grown := make(chan byte)
	go func() { grown <- grow(depth) }()
	if grow(depth) != <-grown {
		log.Fatal("a stack was moved and its contents were not")
	}
	answer := fmt.Sprintf("%s\n%s", request.URL.Path, body)
	writer.Header().Set("Content-Length", strconv.Itoa(len(answer)))
	if strings.HasSuffix(request.URL.Path, "/missing") {
		writer.WriteHeader(http.StatusNotFound)
	}
	io.WriteString(writer, answer)
}

func main() {
	go func() {
		for range time.Tick(collectEvery) {
			runtime.GC()
		}
	}()
	http.HandleFunc("/", handleRequest)
	log.Fatal(http.ListenAndServe(":"+os.Args[1], nil))
}
