//go:build e2e

package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The only cluster that the tests may use, because they kill pods.
const kubeContext = "kind-myticket"

// The images under test: the same program under two versions, and one whose migration fails.
const (
	imageOne    = "myticket:e2e-one"
	imageTwo    = "myticket:e2e-two"
	imageBroken = "myticket:e2e-broken"
)

var (
	ingress = flag.String("ingress", "http://127.0.0.1:8080", "address of the cluster's ingress controller")
	class   = flag.String("ingress-class", "traefik", "its IngressClass")
	proxies = flag.String("ingress-namespace", "traefik", "the namespace of its pods")
	cluster = flag.String("cluster", "", "a program that starts a node again (PROGRAM revive NODE), if docker start is not enough")
)

func TestMain(m *testing.M) {
	flag.Parse()
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	code := m.Run()
	if err := leaveNothing(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

// root is the top of the repository.
func root() string { return filepath.Join("..", "..") }

// output runs a program to its end and returns what it printed. The error has what it wrote to stderr.
func output(ctx context.Context, dir, stdin, name string, args ...string) (string, error) {
	command := exec.CommandContext(ctx, name, args...)
	command.Dir = dir
	command.WaitDelay = 5 * time.Second
	if stdin != "" {
		command.Stdin = strings.NewReader(stdin)
	}
	var complaints strings.Builder
	command.Stderr = &complaints
	printed, err := command.Output()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, printed, complaints.String())
	}
	return string(printed), err
}

// prepare deletes what an interrupted run left, builds the images and loads them on the nodes.
func prepare() error {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	if _, err := output(ctx, root(), "", "kubectl", "--context", kubeContext, "get", "crd", "clusters.postgresql.cnpg.io"); err != nil {
		return fmt.Errorf("the context %s has no cluster with CloudNativePG: run make cluster: %w", kubeContext, err)
	}
	if err := leaveNothing(); err != nil {
		return err
	}
	if err := pathsByElement(ctx); err != nil {
		return err
	}
	broken, err := brokenCopy()
	if err != nil {
		return err
	}
	defer os.RemoveAll(broken)
	for _, image := range []struct{ name, source string }{{imageOne, root()}, {imageTwo, root()}, {imageBroken, broken}} {
		_, version, _ := strings.Cut(image.name, ":")
		if _, err := output(ctx, image.source, "", "make", "image", "IMAGE="+image.name, "VERSION="+version); err != nil {
			return err
		}
	}
	_, err = output(ctx, root(), "", "go", "tool", "kind", "load", "docker-image", "--name", strings.TrimPrefix(kubeContext, "kind-"),
		imageOne, imageTwo, imageBroken)
	return err
}

// pathsByElement tells Traefik to compare the elements of paths, as k8s/ingress does, if the cluster's does not yet: otherwise
// /ticket/shop-1 takes the tickets of shop-10, too.
func pathsByElement(ctx context.Context) error {
	const flag = "--providers.kubernetesingress.strictprefixmatching=true"
	traefik := func(args ...string) (string, error) {
		return output(ctx, root(), "", "kubectl", append([]string{"--context", kubeContext, "--namespace", *proxies}, args...)...)
	}
	have, err := traefik("get", "deployment", "traefik", "-o", "jsonpath={.spec.template.spec.containers[0].args}")
	if err != nil || strings.Contains(strings.ToLower(have), "strictprefixmatching") {
		return err
	}
	_, err = traefik("patch", "deployment", "traefik", "--type=json", "--patch",
		`[{"op":"add","path":"/spec/template/spec/containers/0/args/-","value":"`+flag+`"}]`)
	if err == nil {
		_, err = traefik("rollout", "status", "deployment/traefik", "--timeout=120s")
	}
	return err
}

// brokenCopy returns a copy of the sources with one more migration, which Postgres refuses half-way.
func brokenCopy() (string, error) {
	dir, err := os.MkdirTemp("", "myticket-e2e")
	if err != nil {
		return "", err
	}
	for _, part := range []string{"Dockerfile", ".dockerignore", "Makefile", "go.mod", "go.sum"} {
		content, err := os.ReadFile(filepath.Join(root(), part))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, part), content, 0o644)
		}
		if err != nil {
			return "", err
		}
	}
	for _, part := range []string{"cmd", "internal", "migrations", "testdata"} {
		if err := os.CopyFS(filepath.Join(dir, part), os.DirFS(filepath.Join(root(), part))); err != nil {
			return "", err
		}
	}
	const sql = "CREATE TABLE e2e_half_way (n int);\nSELECT 1/0 AS the_reason_that_must_be_seen;\n"
	return dir, os.WriteFile(filepath.Join(dir, "migrations", "9999_broken.up.sql"), []byte(sql), 0o644)
}

// leaveNothing deletes the namespaces of all tests, also those of an interrupted run, and waits until they are gone.
func leaveNothing() error {
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Minute)
	defer cancel()
	_, err := output(ctx, root(), "", "kubectl", "--context", kubeContext, "delete", "namespaces", "-l", "myticket-e2e", "--timeout=5m")
	return err
}
