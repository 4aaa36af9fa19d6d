package integration

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// shell runs a script for who, or on the Engine's own socket where who is nil,
// and returns everything it printed with what differs from run to run masked.
func shell(t *testing.T, who *lab.Person, script string) string {
	t.Helper()
	cmd := shellCommand(t, who, script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		out = append(out, ("\nscript: " + err.Error())...)
	}
	return mask(string(out))
}

func shellCommand(t *testing.T, who *lab.Person, script string) *exec.Cmd {
	t.Helper()
	ctx := limit(t)
	var cmd *exec.Cmd
	if who != nil {
		cmd = theProxy.Command(ctx, *who, "sh", "-c", script)
	} else {
		cmd = exec.CommandContext(ctx, "sh", "-c", script)
		cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+theEngine.Socket, "DOCKER_CONFIG="+theEngine.Dir+"/admin-config")
	}
	return inScratch(t, cmd)
}

// inScratch gives a command a directory of its own, and what scripts go by.
func inScratch(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	// Scratch space that belongs to whoever runs the script.
	scratch := t.TempDir()
	for dir := scratch; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	cmd.Dir = scratch
	cmd.Env = append(cmd.Env, "DOCKER_BUILDKIT=0", "DOCKER_CLI_HINTS=false", "IMAGE="+lab.Image)
	return cmd
}

var masks = []struct {
	re   *regexp.Regexp
	with string
}{
	{regexp.MustCompile(`[0-9a-f]{64}`), "<id>"},
	{regexp.MustCompile(`\b[0-9a-f]{12}\b`), "<short>"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT[0-9:.]+(Z|[+-]\d\d:\d\d)`), "<time>"},
	{regexp.MustCompile(`unix://\S+`), "<socket>"},
}

func mask(s string) string {
	for _, m := range masks {
		s = m.re.ReplaceAllString(s, m.with)
	}
	return s
}

// TestCLIBehavesAsOnTheRawSocket runs each script on the Engine's own socket and
// through alice's, and wants the same output and exit codes.
func TestCLIBehavesAsOnTheRawSocket(t *testing.T) {
	for _, c := range []struct{ name, script string }{
		{"version", `docker version --format '{{.Client.APIVersion}} {{.Server.APIVersion}} {{.Server.Version}} {{.Server.MinAPIVersion}}'`},
		{"info", `docker info --format '{{.ServerVersion}} {{.CgroupDriver}} {{.OSType}}'`},
		{"run, both streams and exit code", `docker run --rm $IMAGE sh -c 'echo out; echo err >&2; exit 7' 2>err; echo $?; cat err`},
		{"run detached, ps, rm", `docker run -d --name c1 $IMAGE sleep 1000; docker ps --filter name=c1 --format '{{.Names}} {{.Image}} {{.Command}}'
			docker ps -q --filter name=nosuch; docker ps -a --filter label=nosuch -q; docker ps --filter status=exited -q --filter name=c1; docker rm -f c1; docker ps -aq --filter name=c1`},
		{"run with input and half-close", `printf 'one\ntwo\n' | docker run -i --rm $IMAGE sh -c 'cat; echo end'`},
		{"run with much input", `head -c 3000000 /dev/zero | docker run -i --rm $IMAGE sh -c 'wc -c; echo end'`},
		{"run with much output", `docker run --rm $IMAGE sh -c 'head -c 5000000 /dev/zero' | wc -c`},
		{"output after half-close", `printf x | docker run -i --rm $IMAGE sh -c 'cat; sleep 0.5; echo late; sleep 0.5; echo later'`},
		{"missing command", `docker run --rm $IMAGE /nosuch 2>/dev/null; echo $?`},
		{"missing container", `for c in stop logs inspect rm start top "exec" ; do docker $c nosuch 2>&1 $( [ $c = exec ] && echo ls ); echo $?; done; docker rm -f nosuch; echo $?`},
		{"exec", `docker run -d --name c1 $IMAGE sleep 1000 >/dev/null; docker exec c1 sh -c 'echo out; echo err >&2; exit 5' 2>err; echo $?; cat err
			echo piped | docker exec -i c1 cat; docker exec -d c1 touch /made; sleep 0.3; docker exec c1 ls /made; docker exec -u 1000 c1 id -u; docker exec -e X=y -w /tmp c1 sh -c 'echo $X; pwd'; docker rm -f c1`},
		{"attach", `docker run -di --name c1 $IMAGE sh -c 'read x; echo got $x; sleep 1' >/dev/null; (echo word; sleep 0.5) | docker attach c1; docker wait c1; docker rm c1`},
		{"attach without input", `docker run -d --name c1 $IMAGE sh -c 'sleep 1; echo tick; exit 4' >/dev/null; docker attach --no-stdin c1; echo $?; docker rm c1`},
		{"logs", `docker run --name c1 $IMAGE sh -c 'echo 1; echo 2 >&2; echo 3' >/dev/null 2>&1; docker logs c1 2>err; cat err; docker logs --tail 1 c1 2>&1 | wc -l; docker logs -f c1 2>err; cat err; docker rm c1`},
		{"logs follow", `docker run -d --name c1 $IMAGE sh -c 'for i in 1 2 3; do echo $i; sleep 0.2; done' >/dev/null; docker logs -f c1; docker rm c1`},
		{"cp out and in", `docker run -d --name c1 $IMAGE sleep 1000 >/dev/null; head -c 2000000 /dev/urandom >a; docker cp -q a c1:/tmp/a; docker cp -q c1:/tmp/a b; cmp a b && echo same
			tar -cf - a | docker cp -q - c1:/root; docker exec c1 ls /root; docker cp -q c1:/root/a - | tar -tf -; docker cp c1:/nosuch x 2>/dev/null; echo $?; docker cp -q a nosuch:/x 2>/dev/null; echo $?; docker rm -f c1`},
		{"top, stats, diff", `docker run -d --name c1 $IMAGE sleep 1000 >/dev/null; docker top c1 -o args | tail -1; docker stats --no-stream --format '{{.Name}}' c1; docker exec c1 touch /new; docker diff c1; docker rm -f c1`},
		{"inspect", `docker create --name c1 -e A=b -p 18080:80 --memory 64m --pids-limit 64 $IMAGE true >/dev/null; docker inspect c1 --format '{{.Name}} {{.Config.Env}} {{.HostConfig.Memory}} {{.HostConfig.PortBindings}} {{.HostConfig.NetworkMode}} {{.HostConfig.MaskedPaths}} {{.HostConfig.OomKillDisable}} {{.HostConfig.PidsLimit}} {{.HostConfig.ShmSize}}'; docker rm c1`},
		{"rename", `docker create --name c1 $IMAGE true >/dev/null; docker rename c1 c2; docker inspect c2 --format '{{.Name}}'; docker inspect c1 --format x; echo $?; docker rename c2 c1; docker rm c1`},
		{"start, stop, restart, pause, kill, wait", `docker create --init --name c1 $IMAGE sh -c 'sleep 1000; exit 9' >/dev/null; docker start c1; docker pause c1; docker unpause c1; docker restart -t 0 c1; docker kill -s KILL c1; docker wait c1; docker start c1; docker stop -t 0 c1; docker inspect c1 --format '{{.State.Status}} {{.State.ExitCode}}'; docker rm c1`},
		{"start attached", `docker create --name c1 $IMAGE sh -c 'echo hello; exit 3' >/dev/null; docker start -a c1; echo $?; docker rm c1`},
		{"update", `docker run -d --name c1 --memory 64m --memory-swap 64m $IMAGE sleep 1000 >/dev/null; docker update --memory 32m --memory-swap 32m c1; docker inspect c1 --format '{{.HostConfig.Memory}} {{.HostConfig.CpuShares}}'; docker rm -f c1`},
		{"wait and auto-remove", `docker run -d --rm --name c1 $IMAGE sh -c 'sleep 0.5; exit 6' >/dev/null; docker wait c1; sleep 0.5; docker ps -aq --filter name=c1`},
		{"commit, tag, save, load, rmi", `docker run --name c1 $IMAGE touch /f; docker commit -m m -c 'ENV X=y' c1 tmp/img:1 | cut -c1-7; docker run --rm tmp/img:1 sh -c 'ls /f; echo $X'; docker tag tmp/img:1 tmp/img:2
			docker save tmp/img:1 >t.tar; docker rmi tmp/img:1 tmp/img:2 | grep -c Untagged; docker load -q <t.tar; docker image inspect tmp/img:1 --format '{{.RepoTags}}'; docker rmi tmp/img:1 >/dev/null; docker rm c1`},
		{"export, import", `docker create --name c1 $IMAGE true >/dev/null; docker export c1 | tar -t | grep -c bin/; docker export c1 | docker import - tmp/imp:1 | cut -c1-7; docker rmi tmp/imp:1 | head -1; docker rm c1`},
		{"classic build", `printf 'FROM busybox:local\nARG A\nRUN echo hi > /f && echo $A\nCOPY x /x\nCMD ["cat","/f"]\n' >Dockerfile; echo x >x; docker build --build-arg A=value -q -t tmp/b:1 . | cut -c1-7; docker run --rm tmp/b:1; docker rmi tmp/b:1 | head -1; docker build -q -f nosuch . 2>/dev/null; echo $?; printf 'FROM busybox:local\nRUN exit 3\n' >Dockerfile; docker build --force-rm -q . >/dev/null 2>&1; echo $?`},
		{"networks", `docker network create --label x=y n1 | wc -c; docker network ls --filter name=n1 --format '{{.Name}} {{.Driver}}'; docker run -d --name c1 --network n1 $IMAGE sleep 1000 >/dev/null; docker network inspect n1 --format '{{.Name}} {{len .Containers}}'; docker network disconnect n1 c1; docker network connect --alias al n1 c1; docker network inspect n1 --format '{{len .Containers}}'; docker rm -f c1; docker network rm n1; docker network rm n1; echo $?`},
		{"volumes", `docker volume create --label x=y v1; docker volume ls -q --filter name=v1; docker run --rm -v v1:/d $IMAGE sh -c 'echo data >/d/f'; docker run --rm -v v1:/d $IMAGE cat /d/f; docker volume inspect v1 --format '{{.Name}} {{index .Labels "x"}}'; docker volume rm v1; docker volume rm v1; echo $?`},
		{"links, volumes-from, container modes", `docker run -d --name c1 -v /vol $IMAGE sh -c 'echo x >/vol/f; sleep 1000' >/dev/null; sleep 0.3; docker run --rm --volumes-from c1:ro $IMAGE cat /vol/f; docker run --rm --link c1:al $IMAGE sh -c 'grep -c al /etc/hosts'; docker run --rm --network container:c1 $IMAGE echo net; docker run --rm --pid container:c1 $IMAGE ps | grep -c 'sleep 1000'; docker run --rm --volumes-from nosuch $IMAGE true >/dev/null 2>&1; echo $?; docker rm -f -v c1`},
		{"system df and prune", `docker system df --format '{{.Type}}'; docker create --name c1 --label p=1 $IMAGE true >/dev/null; docker container prune -f --filter label=p=2 | head -1; docker container prune -f --filter label=p=1 | sed -n 3p; docker ps -aq --filter name=c1`},
		{"events", `since=$(date +%s.%N); docker run --rm --name c1 $IMAGE true; docker events --since $since --until $(($(date +%s)+1)) --filter type=container --filter container=c1 --format '{{.Action}}' | sort`},
		{"bad flags come from the Engine", `docker run --rm --memory 1k $IMAGE true; echo $?; docker run --rm --name 'bad name' $IMAGE true; echo $?; docker run --rm -v relative/path:/x:zz $IMAGE true >/dev/null 2>&1; echo $?`},
		{"name taken", `docker create --name c1 $IMAGE true >/dev/null; docker create --name c1 $IMAGE true; echo $?; docker rm c1`},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw := shell(t, nil, c.script)
			via := shell(t, &lab.Alice, c.script)
			if raw != via {
				t.Errorf("script:\n%s\n--- raw socket:\n%s\n--- alice's socket:\n%s", c.script, raw, via)
			}
			if strings.Contains(raw, "script: ") || strings.TrimSpace(raw) == "" {
				t.Errorf("the script itself fails on the raw socket:\n%s", raw)
			}
		})
	}
}

// A terminal is a docker command that runs on a pseudo-terminal.
type terminal struct {
	t    *testing.T
	pty  *os.File
	cmd  *exec.Cmd
	seen chan string
	all  strings.Builder
}

func onTerminal(t *testing.T, who *lab.Person, script string) *terminal {
	t.Helper()
	cmd := shellCommand(t, who, script)
	attr := cmd.SysProcAttr
	if attr == nil {
		attr = &syscall.SysProcAttr{}
	}
	attr.Setsid, attr.Setctty = true, true
	f, err := pty.StartWithAttrs(cmd, &pty.Winsize{Rows: 33, Cols: 77}, attr)
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{t: t, pty: f, cmd: cmd, seen: make(chan string, 1024)}
	t.Cleanup(func() {
		f.Close()
		_ = cmd.Process.Kill()
		_, _ = cmd.Process.Wait()
	})
	go func() {
		defer close(term.seen)
		buf := make([]byte, 4096)
		for {
			n, err := f.Read(buf)
			if n > 0 {
				term.seen <- string(buf[:n])
			}
			if err != nil {
				return
			}
		}
	}()
	return term
}

// expect waits until the terminal has shown text.
func (term *terminal) expect(text string) {
	term.t.Helper()
	timeout := time.After(20 * time.Second)
	for !strings.Contains(term.all.String(), text) {
		select {
		case s, open := <-term.seen:
			if !open {
				term.t.Fatalf("the terminal closed before it showed %q; it showed:\n%s", text, term.all.String())
			}
			term.all.WriteString(s)
		case <-timeout:
			term.t.Fatalf("the terminal does not show %q; it showed:\n%s", text, term.all.String())
		}
	}
}

func (term *terminal) send(text string) {
	term.t.Helper()
	if _, err := term.pty.WriteString(text); err != nil {
		term.t.Fatal(err)
	}
}

// exit waits for the command and returns its exit code.
func (term *terminal) exit() int {
	term.t.Helper()
	done := make(chan error, 1)
	go func() { done <- term.cmd.Wait() }()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case <-done:
			return term.cmd.ProcessState.ExitCode()
		case s := <-term.seen:
			term.all.WriteString(s)
		case <-timeout:
			term.t.Fatalf("the command does not end; it showed:\n%s", term.all.String())
		}
	}
}

// reader is a shell without line editing, which would ask the terminal for its
// cursor and take what is typed meanwhile for the answer.
const reader = `sh -c 'while read line; do eval "$line"; done'`

// TestTerminals drives interactive commands, on both sockets.
func TestTerminals(t *testing.T) {
	for _, side := range []struct {
		name string
		who  *lab.Person
	}{{"raw", nil}, {"alice", &lab.Alice}} {
		t.Run(side.name, func(t *testing.T) {
			t.Cleanup(func() { _, _ = theEngine.Docker(context.Background(), "rm", "-f", "term1") })
			t.Run("run -it, size, resize, exit code", func(t *testing.T) {
				term := onTerminal(t, side.who, `exec docker run -it --rm $IMAGE `+reader)
				// The client tells the size once the container runs.
				term.send("until [ \"$(stty size)\" = '33 77' ]; do sleep 0.1; done; echo $((40+2))\n")
				term.expect("42")
				if err := pty.Setsize(term.pty, &pty.Winsize{Rows: 22, Cols: 55}); err != nil {
					t.Fatal(err)
				}
				term.send("until [ \"$(stty size)\" = '22 55' ]; do sleep 0.1; done; echo $((50+3))\n")
				term.expect("53")
				term.send("exit 12\n")
				if code := term.exit(); code != 12 {
					t.Errorf("exit code %d, want 12", code)
				}
			})
			t.Run("interrupt", func(t *testing.T) {
				term := onTerminal(t, side.who, `exec docker run -it --rm $IMAGE sh -c 'trap "echo caught; exit 9" INT; echo ready; while :; do sleep 0.1; done'`)
				term.expect("ready")
				term.send("\x03")
				term.expect("caught")
				if code := term.exit(); code != 9 {
					t.Errorf("exit code %d, want 9", code)
				}
			})
			t.Run("SIGINT to the client without a terminal inside", func(t *testing.T) {
				term := onTerminal(t, side.who, `exec docker run --rm --init $IMAGE sh -c 'trap "echo caught; exit 8" INT; echo ready; while :; do sleep 0.1; done'`)
				term.expect("ready")
				if err := term.cmd.Process.Signal(syscall.SIGINT); err != nil {
					t.Fatal(err)
				}
				term.expect("caught")
				if code := term.exit(); code != 8 {
					t.Errorf("exit code %d, want 8", code)
				}
			})
			t.Run("detach, attach, exec -it", func(t *testing.T) {
				term := onTerminal(t, side.who, `exec docker run -it --name term1 $IMAGE `+reader)
				term.send("echo $((20+1))\n")
				term.expect("21")
				term.send("\x10\x11")
				if code := term.exit(); code != 0 {
					t.Errorf("exit code of the detached client %d, want 0", code)
				}
				if state := admin(t, "inspect", "term1", "--format", "{{.State.Running}}"); state != "true" {
					t.Fatalf("after detaching the container runs: %s", state)
				}
				again := onTerminal(t, side.who, `exec docker attach --detach-keys ctrl-x term1`)
				again.send("echo $((30+2))\n")
				again.expect("32")
				again.send("\x18")
				again.exit()
				inside := onTerminal(t, side.who, `exec docker exec -it term1 sh -c 'until [ "$(stty size)" = "33 77" ]; do sleep 0.1; done; echo $((60+4)); read x; echo got-$x; exit 6'`)
				inside.expect("64")
				inside.send("word\n")
				inside.expect("got-word")
				if code := inside.exit(); code != 6 {
					t.Errorf("exit code of exec %d, want 6", code)
				}
			})
		})
	}
}
