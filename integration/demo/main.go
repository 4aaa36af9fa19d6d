// Command demo shows two users on one Docker Engine: what each types and what
// comes back. It uses two uids that have no account and an Engine of its own.
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
	"strings"
	"syscall"

	"github.com/ds01/ds01-proxy/integration/lab"
)

func main() {
	binary := flag.String("binary", "bin/ds01-proxy", "the ds01-proxy to show")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *binary); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, binary string) (err error) {
	if binary, err = filepath.Abs(binary); err != nil {
		return err
	}
	scratch, err := lab.NewScratch()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, scratch.Close()) }()
	fmt.Println("starting a private Docker Engine, which takes some seconds …")
	e, err := scratch.Engine(ctx)
	if err != nil {
		return err
	}
	proxyDir, err := scratch.Make("p", 0o755)
	if err != nil {
		return err
	}
	p, err := lab.StartProxy(ctx, binary, proxyDir, e.Socket, []lab.Person{lab.Alice, lab.Bob})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Stop()) }()
	return play(ctx, e, p)
}

// A line of the demo: who types what, whether it must work, and what must be in
// its answer.
type line struct {
	who   string
	typed string
	works bool
	has   string
}

const denied = "Permission denied: this container belongs to alice"

func play(ctx context.Context, e *lab.Engine, p *lab.Proxy) error {
	for _, part := range []struct {
		title string
		lines []line
	}{
		{"alice runs a container", []line{
			{"alice", "docker run -d --name train busybox:local sleep 600", true, ""},
			{"alice", "docker exec train echo hello from train", true, "hello from train"},
			{"alice", "docker ps --format 'table {{.Names}}\t{{.Image}}\t{{.Status}}'", true, "train"},
		}},
		{"bob neither sees nor reaches it", []line{
			{"bob", "docker ps -a", true, ""},
			{"bob", "docker exec train sh", false, denied},
			{"bob", "docker stop train", false, denied},
			{"bob", "docker rm -f train", false, denied},
			{"bob", "docker logs train", false, denied},
			{"bob", "docker inspect train", false, denied},
			{"bob", "docker cp train:/etc/hostname -", false, denied},
			{"bob", "docker run --rm --volumes-from train busybox:local ls", false, denied},
		}},
		{"bob has his own, and the same name is taken", []line{
			{"bob", "docker run --rm busybox:local echo hello from bob", true, "hello from bob"},
			{"bob", "docker run -d --name train busybox:local sleep 600", false, "already in use"},
			{"bob", "docker run -d --name eval busybox:local sleep 600", true, ""},
		}},
		{"the admin, on the Engine's own socket, sees both", []line{
			{"admin", `docker ps --format 'table {{.Names}}\t{{.Label "ds01.user"}}\t{{.Status}}'`, true, "bob"},
		}},
		{"alice cleans up what is hers", []line{
			{"alice", "docker rm -f train", true, "train"},
			{"alice", "docker rm -f eval", false, "Permission denied: this container belongs to bob"},
		}},
	} {
		fmt.Printf("\n— %s\n", part.title)
		for _, l := range part.lines {
			if err := say(ctx, e, p, l); err != nil {
				return err
			}
		}
	}
	fmt.Println("\nDone. Everything that was started is stopped and removed.")
	return nil
}

// say runs one line and shows it as a terminal would.
func say(ctx context.Context, e *lab.Engine, p *lab.Proxy, l line) error {
	var cmd *exec.Cmd
	switch l.who {
	case "admin":
		cmd = exec.CommandContext(ctx, "sh", "-c", l.typed)
		cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+e.Socket, "DOCKER_CONFIG="+filepath.Join(e.Dir, "admin-config"))
	case "alice":
		cmd = p.Command(ctx, lab.Alice, "sh", "-c", l.typed)
	default:
		cmd = p.Command(ctx, lab.Bob, "sh", "-c", l.typed)
	}
	fmt.Printf("\n%s$ %s\n", l.who, l.typed)
	out, err := cmd.CombinedOutput()
	fmt.Print(string(out))
	if (err == nil) != l.works || !strings.Contains(string(out), l.has) {
		return fmt.Errorf("%s typed %q and that should not have come back", l.who, l.typed)
	}
	return nil
}
