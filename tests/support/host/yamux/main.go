// hashicorp/yamux as the peer of goplugin's yamux. It connects to a Unix socket, does what its arguments say, prints
// the result, and exits. Usage: yamux client|server SOCKET exchange|flood|refuse|reset STREAMS SIZE
package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

func main() {
	side, socket, what := os.Args[1], os.Args[2], os.Args[3]
	streams, _ := strconv.Atoi(os.Args[4])
	size, _ := strconv.Atoi(os.Args[5])
	conn, err := net.Dial("unix", socket)
	check(err)
	c := yamux.DefaultConfig()
	c.KeepAliveInterval = 50 * time.Millisecond // unanswered pings end the session
	c.ConnectionWriteTimeout = 10 * time.Second
	c.LogOutput = io.Discard
	if what == "refuse" {
		c.AcceptBacklog = streams
	}
	var session *yamux.Session
	if side == "client" {
		session, err = yamux.Client(conn, c)
	} else {
		session, err = yamux.Server(conn, c)
	}
	check(err)
	switch what {
	case "exchange": // open streams and send on each; the data and then the end must come back
		var wg sync.WaitGroup
		for i := range streams {
			stream, err := session.OpenStream()
			check(err)
			wg.Add(1)
			go func() { defer wg.Done(); exchange(stream, int64(i), size) }()
		}
		wg.Wait()
		fmt.Println("all came back")
	case "flood": // write without end to a side that does not read
		stream, err := session.OpenStream()
		check(err)
		check(stream.SetWriteDeadline(time.Now().Add(time.Second)))
		n, err := stream.Write(make([]byte, size))
		fmt.Println(n, err)
	case "refuse": // accept nothing until the other side has opened too many, and says so on stdin
		_, err := os.Stdin.Read(make([]byte, 1))
		check(err)
		for range streams {
			stream, err := session.AcceptStream()
			check(err)
			_, err = stream.Write([]byte("accepted"))
			check(err)
		}
		<-session.CloseChan()
	case "reset": // the other side cuts the stream
		stream, err := session.OpenStream()
		check(err)
		_, err = stream.Write([]byte("cut this"))
		check(err)
		_, err = stream.Read(make([]byte, 1))
		fmt.Println(errors.Is(err, yamux.ErrConnectionReset))
	}
}

// exchange writes random bytes, closes its half, and compares the answer.
func exchange(stream *yamux.Stream, seed int64, size int) {
	sent := sha256.New()
	go func() {
		_, err := io.CopyN(io.MultiWriter(stream, sent), rand.New(rand.NewSource(seed)), int64(size))
		check(err)
		check(stream.Close())
	}()
	received := sha256.New()
	n, err := io.Copy(received, stream)
	check(err)
	if n != int64(size) || !bytes.Equal(sent.Sum(nil), received.Sum(nil)) {
		check(fmt.Errorf("%d of %d bytes came back, or others", n, size))
	}
}

func check(err error) {
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
}
