package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
)

// fewest is the minimum of calls of each goroutine: Seconds may be too short for large messages.
const fewest = 2

// load calls Method with Message in Repeat goroutines for about Seconds; each goroutine makes one call after the other.
// Each answer must have at least Size bytes.
func load(conn *grpc.ClientConn, r request) (response, error) {
	latencies := make([][]time.Duration, r.Repeat)
	errs := make([]error, r.Repeat)
	begin := time.Now()
	end := begin.Add(time.Duration(r.Seconds * float64(time.Second)))
	var group sync.WaitGroup
	for i := range r.Repeat {
		group.Add(1)
		go func() {
			defer group.Done()
			for n := 0; errs[i] == nil && (n < fewest || time.Now().Before(end)); n++ {
				// An unanswered call must end; the measured calls take milliseconds.
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				var out []byte
				sent := time.Now()
				errs[i] = conn.Invoke(ctx, r.Method, &r.Message, &out, grpc.ForceCodec(rawCodec{}))
				latencies[i] = append(latencies[i], time.Since(sent))
				cancel()
				if errs[i] == nil && len(out) < r.Size {
					errs[i] = fmt.Errorf("%d bytes were asked for, %d came", r.Size, len(out))
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
	return response{
		"rate": float64(len(all)) / seconds,
		"p50":  all[len(all)*50/100].Seconds(),
		"p99":  all[len(all)*99/100].Seconds(),
	}, nil
}
