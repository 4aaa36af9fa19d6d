package integration

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// A chore is an ordinary script that profiles must let work as it does on the
// Engine's own socket.
type chore struct {
	name, script string
	// profiles are those that it works with, apart by spaces; all where it is empty.
	profiles string
	// refusal is what is printed, among other things, by the other profiles.
	refusal string
}

// hostConfig prints what the Engine has of a container, but for the slice.
const hostConfig = `docker inspect $N --format '{{json .HostConfig}}' | sed 's/"CgroupParent":"[^"]*"//'`

var chores = []chore{
	{name: "every harmless setting", script: `docker run -d --name $N -e A=b -l x=y -p 127.0.0.1:$PORT:80 -p 80 --memory 64m --memory-swap 64m --memory-swappiness 10 --cpus 0.5 --cpu-shares 512 --cpuset-cpus 0 \
			--pids-limit 50 --tmpfs /t:size=1m,mode=1777 --shm-size 8m --ulimit memlock=65536 --ulimit nofile=512:512 --ulimit core=0 --restart unless-stopped --health-cmd true --health-interval 1h \
			--init --read-only -u 1000:1000 -w /tmp -h myhost --dns 10.0.0.1 --dns-search x.test --dns-opt ndots:1 --add-host peer:1.2.3.4 --cap-drop ALL --security-opt no-new-privileges --oom-score-adj 100 \
			--log-driver json-file --log-opt max-size=1m --log-opt max-file=2 --sysctl net.ipv4.ip_unprivileged_port_start=79 --stop-signal USR1 --stop-timeout 3 --ipc private --expose 81 $IMAGE sleep 1000
		` + hostConfig + `
		docker inspect $N --format '{{.Config.Env}} {{index .Config.Labels "x"}} {{.Config.StopSignal}} {{.Config.Healthcheck.Test}}'
		docker exec $N sh -c 'id -u; pwd; hostname; grep peer /etc/hosts; cat /etc/resolv.conf /proc/sys/net/ipv4/ip_unprivileged_port_start; ulimit -l; ulimit -n; grep -E "^(Cap|NoNew|Seccomp:)" /proc/self/status; touch /x 2>&1; touch /t/x && echo made; df /dev/shm | tail -1; echo $A'
		docker exec -u 0 $N id -u
		docker update --memory 32m --memory-swap 32m --cpus 0.25 --restart no $N
		docker inspect $N --format '{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.RestartPolicy.Name}}'
		docker port $N 80 | head -1 | cut -c1-8; docker rm -f $N`},
	{name: "nothing said", refusal: "CapEff:\t0000000000000000", script: `docker run -d --name $N $IMAGE sleep 1000; ` + hostConfig + `; docker exec $N sh -c 'grep -E "^(Cap|NoNew|Seccomp:)" /proc/self/status; chown 1000 /tmp && echo chowned; mount | grep -c "proc.*(ro"'; docker rm -f $N`, profiles: "confined ml-lab open"},
	{name: "copies and logs", script: `docker run -d --name $N $IMAGE sh -c 'echo line; echo word >&2; sleep 1000'; echo file >f; docker cp -q f $N:/tmp/f; docker exec $N cat /tmp/f; docker cp -q $N:/tmp/f g; cat g; docker logs $N 2>&1 | sort; docker stop -t 0 $N; docker start $N; docker rm -f $N`},
	{name: "networks and volumes", script: `docker network create --label x=y $N >/dev/null; docker volume create $N; docker run -d --name $N --network $N --network-alias al -v $N:/d -v /anon --tmpfs /m $IMAGE sleep 1000
		docker exec $N sh -c 'echo x >/d/f; cat /d/f; ls -d /anon /m; nslookup al >/dev/null && echo found'; docker network create $N-b >/dev/null; docker network connect --alias other $N-b $N; docker inspect $N --format '{{len .NetworkSettings.Networks}}'
		docker run --rm --volumes-from $N:ro $IMAGE cat /d/f; docker run --rm --network container:$N --pid container:$N $IMAGE ps -o args | grep -c 'sleep 1000'; docker rm -f -v $N; docker network rm $N $N-b; docker volume rm $N`},
	{name: "a build", script: `printf 'FROM busybox:local\nARG A\nRUN echo $A >/f && id -u\nUSER 1000\nCMD ["cat","/f"]\n' >Dockerfile; docker build -q --build-arg A=value --network none --memory 64m --memory-swap 64m --ulimit nofile=512 -t $N:1 . | cut -c1-7; docker run --rm $N:1; docker rmi $N:1 | head -1`},
	{name: "compose", script: `cat >docker-compose.yml <<END
version: "2.4"
services:
  one:
    image: busybox:local
    command: sleep 1000
    init: true
    restart: unless-stopped
    mem_limit: 64m
    cpus: 0.5
    shm_size: 8m
    read_only: true
    user: "1000"
    cap_drop: [ALL]
    security_opt: [no-new-privileges]
    tmpfs: [/t]
    ulimits: {memlock: 65536, nofile: {soft: 512, hard: 512}}
    sysctls: {net.ipv4.ip_unprivileged_port_start: 79}
    logging: {driver: json-file, options: {max-size: 1m}}
    healthcheck: {test: "true", interval: 1h}
    volumes: [data:/data]
    ports: ["127.0.0.1:$PORT:80"]
    extra_hosts: ["peer:1.2.3.4"]
    labels: {x: "y"}
  two:
    image: busybox:local
    command: sleep 1000
    init: true
    depends_on: [one]
volumes: {data: {}}
END
docker-compose -p $N up -d 2>/dev/null; docker-compose -p $N exec -T one sh -c 'id -u; grep CapEff /proc/self/status; ulimit -n; hostname | wc -c'; docker ps -q --filter label=com.docker.compose.project=$N | wc -l; docker-compose -p $N down -v -t 0 2>/dev/null; docker ps -aq --filter label=com.docker.compose.project=$N; docker volume ls -q --filter name=${N}_data`},
	{name: "more groups", script: `docker run --rm --group-add 1234 --group-add 5 $IMAGE grep Groups: /proc/self/status`, profiles: "confined ml-lab open", refusal: "--group-add 1234 is not allowed here (rule group-add, profile strict)."},
	{name: "a harmless capability", script: `docker run --rm --cap-drop ALL --cap-add CHOWN $IMAGE grep CapEff /proc/self/status`, profiles: "confined ml-lab open", refusal: "CHOWN is not allowed here (rule capabilities, profile strict). Allowed: NET_BIND_SERVICE."},
	{name: "the lowest ports of the container", script: `docker run --rm --cap-drop ALL --cap-add NET_BIND_SERVICE $IMAGE grep CapEff /proc/self/status`},
	{name: "a debugger with shared memory", script: `docker create --name $N --cap-add SYS_PTRACE --shm-size 1g --ulimit memlock=-1 --ulimit stack=67108864 --shm-size 1g $IMAGE; ` + hostConfig + `; docker rm $N
		docker run --rm --cap-add SYS_PTRACE --shm-size 1g --ulimit stack=67108864 $IMAGE sh -c 'grep CapEff /proc/self/status; ulimit -s'`,
		profiles: "ml-lab open", refusal: "SYS_PTRACE is not allowed here (rule capabilities, profile "},
	{name: "shared memory of the host", script: `docker run --rm --ipc host $IMAGE readlink /proc/self/ns/ipc`, profiles: "open", refusal: "--ipc host is not allowed here (rule host-ipc, profile "},
	{name: "large shared memory of one's own", script: `docker create --name $N --cap-drop ALL --security-opt no-new-privileges --shm-size 1g --ulimit memlock=-1 --ulimit stack=67108864 $IMAGE; ` + hostConfig + `; docker rm $N
		docker run --rm --shm-size 1g --ulimit stack=67108864 $IMAGE sh -c 'df /dev/shm | tail -1; ulimit -s'`},
	{name: "a chosen device", script: `docker run --rm --device /dev/fuse $IMAGE ls -l /dev/fuse | cut -c1-10`, profiles: "ml-lab open", refusal: "--device /dev/fuse is not allowed here (rule devices, profile "},
	{name: "the host's processes", script: `docker run --rm --pid host $IMAGE readlink /proc/self/ns/pid`, profiles: "open", refusal: "--pid host is not allowed here (rule host-pid, profile "},
	{name: "everything", script: `docker create --name $N --privileged --network host --pid host --uts host --ipc host --cap-add ALL --security-opt seccomp=unconfined --device /dev/null -p 80:80 --log-driver none $IMAGE; ` + hostConfig + `; docker rm $N`,
		profiles: "open", refusal: "--privileged is not allowed here (rule refuse-privileged, profile "},
}

// TestProfilesLetOrdinaryThingsWork runs every script on the Engine's own socket and
// with each profile, side by side, and wants the same output, or the refusal.
func TestProfilesLetOrdinaryThingsWork(t *testing.T) {
	sides := []string{"raw", "confined", "strict", "ml-lab", "open"}
	proxies := make(map[string]*lab.Proxy)
	for _, name := range sides[1:] {
		proxies[name] = configured(t, "profile: "+name+"\nbuilds: {buildkit: deny}\n")
	}
	for _, name := range sides {
		tidy(t, "pf-"+name, "pf-"+name+"-b")
		untag(t, "pf-"+name+":1")
	}
	for _, c := range chores {
		t.Run(c.name, func(t *testing.T) {
			printed := make([]string, len(sides))
			var all sync.WaitGroup
			for i, name := range sides {
				cmd := shellCommand(t, nil, c.script)
				if p := proxies[name]; p != nil {
					cmd = inScratch(t, p.Command(limit(t), lab.Alice, "sh", "-c", c.script))
				}
				own := strings.NewReplacer("pf-"+name, "<name>", fmt.Sprint(18090+i), "<port>")
				cmd.Env = append(cmd.Env, "N=pf-"+name, "PORT="+fmt.Sprint(18090+i))
				all.Go(func() {
					out, err := cmd.CombinedOutput()
					printed[i] = own.Replace(mask(string(out)))
					// What profiles take from every container, and limits give it.
					printed[i] = strings.NewReplacer(`"CapDrop":["MKNOD"]`, `"CapDrop":null`, "00a80", "00a00", `"PidsLimit":4096`, `"PidsLimit":null`).Replace(printed[i])
					if err != nil {
						printed[i] += "\nscript: " + err.Error()
					}
				})
			}
			all.Wait()
			c.check(t, sides, printed)
		})
	}
}

// check compares what was printed by the profiles with what was by the Engine itself.
func (c *chore) check(t *testing.T, sides, printed []string) {
	t.Helper()
	raw := printed[0]
	if strings.Contains(raw, "rror") || strings.TrimSpace(raw) == "" {
		t.Errorf("the script itself fails on the raw socket:\n%s", raw)
	}
	for i, name := range sides[1:] {
		via := printed[i+1]
		switch {
		case c.profiles == "" || slices.Contains(strings.Fields(c.profiles), name):
			if via != raw {
				t.Errorf("%s differs from the raw socket:\n%s\n--- raw\n%s", name, apart(via, raw), apart(raw, via))
			}
		case !strings.Contains(via, c.refusal):
			t.Errorf("%s: it prints\n%s\nwant the refusal %q", name, via, c.refusal)
		}
	}
}

// TestStrictTakesAwayWhatItSays looks at a container of which nothing was said.
func TestStrictTakesAwayWhatItSays(t *testing.T) {
	p := configured(t, "profile: strict\nbuilds: {buildkit: deny}\n")
	out, err := p.Docker(limit(t), lab.Alice, "run", "--rm", lab.Image, "grep", "-E", "^(CapEff|CapBnd|NoNewPrivs)", "/proc/self/status")
	for _, want := range []string{"CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("%v: it prints\n%s\nwithout %q", err, out, want)
		}
	}
}
