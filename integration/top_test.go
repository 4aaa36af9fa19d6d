package integration

import (
	"fmt"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// TestTopOfTheHost has a container make ps, which the Engine runs on the host, take
// everybody's processes for its own.
func TestTopOfTheHost(t *testing.T) {
	const secret = "bobs-secret-argument"
	bobs := exec.Command("sleep", "1000")
	bobs.Args[0] = secret
	bobs.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: lab.Bob.UID, Gid: lab.Bob.UID}}
	if err := bobs.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = bobs.Process.Kill()
		_ = bobs.Wait()
	})
	tidy(t, "liar")
	as(t, lab.Alice, "run", "-d", "--name", "liar", lab.Image, "sh", "-c", `while [ ! -e /pid ]; do usleep 10000; done; printf "a %s" $(cat /pid) > /proc/$$/comm; while :; do usleep 100000; done`)
	pid := as(t, lab.Alice, "inspect", "-f", "{{.State.Pid}}", "liar")
	as(t, lab.Alice, "exec", "liar", "sh", "-c", "echo "+pid+" >/pid.n; mv /pid.n /pid")
	target := "/containers/liar/top?ps_args=" + url.QueryEscape("ww -e -o fname -o label= -o pid,user,args --sort -start_time")
	eventually(t, "the raw socket tells bob's processes", func() bool {
		return strings.Contains(ask(t, theEngine.Socket, "GET", target, "").body, secret)
	})
	if got := ask(t, theProxy.Socket(lab.Alice), "GET", target, ""); got.status != http.StatusForbidden || strings.Contains(got.body, secret) {
		t.Errorf("alice: %d %s", got.status, got.body)
	}
	for _, args := range []string{"", "-ef", "aux", "-eo pid,user,args"} {
		target := "/containers/liar/top"
		if args != "" {
			target += "?ps_args=" + url.QueryEscape(args)
		}
		if got := ask(t, theProxy.Socket(lab.Alice), "GET", target, ""); got.status != http.StatusOK || !strings.Contains(got.body, fmt.Sprint(pid)) || strings.Contains(got.body, secret) {
			t.Errorf("%q: %d %s", args, got.status, got.body)
		}
	}
}
