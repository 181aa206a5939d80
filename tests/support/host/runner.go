package main

import (
	"context"
	"io"
	"os/exec"
	"strconv"
	"strings"

	"github.com/hashicorp/go-plugin/runner"
)

// cmdRunner is the least that a RunnerFunc can return: a process and the folder of its sockets.
type cmdRunner struct {
	cmd            *exec.Cmd
	here, there    string // the folder of the sockets, as the host and as the plugin see it
	stdout, stderr io.ReadCloser
}

func newRunner(cmd *exec.Cmd, here, there string) (runner.Runner, error) {
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	return &cmdRunner{cmd, here, there, stdout, stderr}, nil
}

func (r *cmdRunner) Start(context.Context) error                      { return r.cmd.Start() }
func (r *cmdRunner) Diagnose(context.Context) string                  { return "" }
func (r *cmdRunner) Stdout() io.ReadCloser                            { return r.stdout }
func (r *cmdRunner) Stderr() io.ReadCloser                            { return r.stderr }
func (r *cmdRunner) Name() string                                     { return r.cmd.Path }
func (r *cmdRunner) Wait(context.Context) error                       { return r.cmd.Wait() }
func (r *cmdRunner) Kill(context.Context) error                       { return r.cmd.Process.Kill() }
func (r *cmdRunner) ID() string                                       { return strconv.Itoa(r.cmd.Process.Pid) }
func (r *cmdRunner) HostToPlugin(n, a string) (string, string, error) { return n, a, nil }

func (r *cmdRunner) PluginToHost(network, address string) (string, string, error) {
	if r.there != "" {
		address = strings.Replace(address, r.there, r.here, 1)
	}
	return network, address, nil
}
