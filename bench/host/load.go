package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-plugin/examples/grpc/proto"
)

// fewest calls of each goroutine: a window is too short for some peers' large values.
const fewest = 2

// load makes calls, Flight at a time, for about Seconds, and says how many were answered and how fast.
func (o *opened) load(r request) (answer, error) {
	call := func(ctx context.Context) error {
		response, err := o.kv.Get(ctx, &proto.GetRequest{Key: r.Key})
		if err == nil && len(response.Value) < r.Size {
			err = fmt.Errorf("%d bytes were asked for, %d came", r.Size, len(response.Value))
		}
		return err
	}
	if r.Method == "Put" {
		// Text, since one of the peers decodes it.
		value := bytes.Repeat([]byte("x"), r.Size)
		call = func(ctx context.Context) error {
			_, err := o.kv.Put(ctx, &proto.PutRequest{Key: r.Key, Value: value})
			return err
		}
	}
	latencies := make([][]time.Duration, r.Flight)
	errs := make([]error, r.Flight)
	begin := time.Now()
	end := begin.Add(time.Duration(r.Seconds * float64(time.Second)))
	var group sync.WaitGroup
	for i := range r.Flight {
		group.Add(1)
		go func() {
			defer group.Done()
			for n := 0; n < fewest || time.Now().Before(end); n++ {
				ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
				sent := time.Now()
				errs[i] = call(ctx)
				latencies[i] = append(latencies[i], time.Since(sent))
				cancel()
				if errs[i] != nil {
					return
				}
			}
		}()
	}
	group.Wait()
	seconds := time.Since(begin).Seconds()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	all := slices.Concat(latencies...)
	slices.Sort(all)
	return answer{
		"rate": float64(len(all)) / seconds,
		"p50":  all[len(all)*50/100].Seconds(),
		"p99":  all[len(all)*99/100].Seconds(),
	}, nil
}

// wait makes calls of a handler that waits 100 ms, all at the same time, and says when the last was answered.
func (o *opened) wait(flight int) (answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	errs := make(chan error, flight)
	begin := time.Now()
	for range flight {
		go func() {
			_, err := o.kv.Get(ctx, &proto.GetRequest{Key: "wait"})
			errs <- err
		}()
	}
	var failed error
	for range flight {
		if err := <-errs; err != nil {
			failed = err
		}
	}
	seconds := time.Since(begin).Seconds()
	if failed == nil && seconds < 0.1 {
		failed = fmt.Errorf("the handlers did not wait: %d calls took %.3f s", flight, seconds)
	}
	return answer{"seconds": seconds}, failed
}

// memory adds up what all processes of a plugin hold: those whose environment has its mark. Descent would not find all
// of them, because a process that is forked twice has no parent in the plugin. resident counts a page once for each
// process that shares it, proportional counts it once.
func memory(mark string) (answer, error) {
	environments, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		return nil, err
	}
	var resident, proportional, processes int
	for _, environment := range environments {
		data, err := os.ReadFile(environment)
		if err != nil || !slices.Contains(strings.Split(string(data), "\x00"), mark) {
			continue // it has ended, or is another's
		}
		data, err = os.ReadFile(filepath.Join(filepath.Dir(environment), "smaps_rollup"))
		if err != nil {
			return nil, err
		}
		resident += kibibytes(data, "Rss:")
		proportional += kibibytes(data, "Pss:")
		processes++
	}
	if processes == 0 {
		return nil, fmt.Errorf("no process has %s", mark)
	}
	return answer{"resident": resident * 1024, "proportional": proportional * 1024, "processes": processes}, nil
}

func kibibytes(rollup []byte, field string) int {
	for line := range strings.Lines(string(rollup)) {
		if fields := strings.Fields(line); fields[0] == field {
			number, _ := strconv.Atoi(fields[1])
			return number
		}
	}
	return 0
}
