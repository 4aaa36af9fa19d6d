// Command run gives a newcomer a running ds01-proxy: before the machine's Docker
// Engine where one answers, else before a private one, for every login user.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/ds01/ds01-proxy/integration/lab"
)

const machineSocket = "/var/run/docker.sock"

func main() {
	binary := flag.String("binary", "bin/ds01-proxy", "the ds01-proxy to run")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *binary, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "run:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, binary string, args []string) (err error) {
	scratch, err := lab.NewScratch()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, scratch.Close()) }()
	dir := scratch.Dir
	socket, image := machineSocket, "IMAGE"
	if lab.Answers(ctx, machineSocket) {
		fmt.Println("using the Docker Engine on", machineSocket)
	} else {
		fmt.Println("no Docker Engine answers on", machineSocket+"; starting a private one, which takes some seconds …")
		e, err := scratch.Engine(ctx)
		if err != nil {
			return err
		}
		fmt.Println("its image:", lab.Image)
		socket, image = e.Socket, lab.Image
	}
	runDir := filepath.Join(dir, "run")
	fmt.Println()
	cmd := exec.Command(binary, append([]string{"serve", "--engine", "unix://" + socket, "--run-dir", runDir, "--state-dir", filepath.Join(dir, "state")}, args...)...)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = os.Stdout, log
	// The interrupt is passed on when the Engine still answers.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	// The daemon's own table comes first.
	for began := time.Now(); !lab.Answers(ctx, filepath.Join(runDir, "docker.sock")) && time.Since(began) < 10*time.Second; {
		time.Sleep(50 * time.Millisecond)
	}
	fmt.Printf(`
A user of the table types:

  export DOCKER_HOST=unix://%s/users/$USER.sock
  docker run --rm %s echo hello

Everybody else types export DOCKER_HOST=unix://%s/docker.sock.
Log: %s. Stop with Ctrl-C.

`, runDir, image, runDir, log.Name())
	select {
	case err := <-ended:
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("ds01-proxy ended: %w\n%s", err, text)
	case <-ctx.Done():
	}
	fmt.Println("stopping …")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return <-ended
}
