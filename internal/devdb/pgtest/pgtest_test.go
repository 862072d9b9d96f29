package pgtest_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb"
	"myticket/internal/devdb/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()

	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })

	return conn
}

func queryInt(t *testing.T, url, sql string, args ...any) int {
	t.Helper()

	var n int
	require.NoError(t, connect(t, url).QueryRow(t.Context(), sql, args...).Scan(&n))

	return n
}

const ticketsTables = "SELECT count(*) FROM pg_tables WHERE tablename = 'tickets'"

func TestNew_GivesEachTestAMigratedDatabase(t *testing.T) {
	t.Parallel()

	for i := range 8 {
		t.Run(fmt.Sprintf("parallel %d", i), func(t *testing.T) {
			t.Parallel()
			url := pgtest.New(t)

			assert.Equal(t, 1, queryInt(t, url, ticketsTables))
			_, err := connect(t, url).Exec(t.Context(), "CREATE TABLE mine ()")
			require.NoError(t, err, "no other test is in this database")
		})
	}
}

func TestEmpty_HasNoSchema(t *testing.T) {
	t.Parallel()

	assert.Zero(t, queryInt(t, pgtest.Empty(t), ticketsTables))
}

func TestNew_DropsTheDatabaseDespiteOpenConnections(t *testing.T) {
	t.Parallel()
	url, name := pgtest.New(t), ""

	t.Run("uses a database", func(t *testing.T) {
		conn, err := pgx.Connect(t.Context(), pgtest.New(t))
		require.NoError(t, err)
		require.NoError(t, conn.QueryRow(t.Context(), "SELECT current_database()").Scan(&name))
		// The connection is left open on purpose.
	})

	assert.Zero(t, queryInt(t, url, "SELECT count(*) FROM pg_database WHERE datname = $1", name))
}

func TestNewServer_IsTheTestsOwn(t *testing.T) {
	t.Parallel()
	server, url := pgtest.NewServer(t)

	require.NoError(t, server.Kill())
	require.NoError(t, server.Restart(t.Context()))
	assert.Equal(t, 1, queryInt(t, url, ticketsTables))
}

// Several packages' test binaries come to one new server at once.
func TestNew_MakesTheTemplateOnceForManyProcesses(t *testing.T) {
	t.Parallel()
	server, err := devdb.Start(t.Context(), devdb.Config{Settings: devdb.Volatile()})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, server.Stop(context.Background())) })

	const processes = 4
	failed := make(chan error, processes)
	for range processes {
		go func() {
			binary := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestNew_GivesEachTestAMigratedDatabase$")
			binary.Env = append(os.Environ(), pgtest.URLEnv+"="+server.URL("postgres"))
			if out, err := binary.CombinedOutput(); err != nil {
				failed <- fmt.Errorf("%w: %s", err, out)

				return
			}
			failed <- nil
		}()
	}
	for range processes {
		require.NoError(t, <-failed)
	}

	assert.Equal(t, 1, queryInt(t, server.URL("postgres"),
		"SELECT count(*) FROM pg_database WHERE datname LIKE 'myticket%'"), "one template, none half made")
	assert.Zero(t, queryInt(t, server.URL("postgres"), "SELECT count(*) FROM pg_database WHERE datname LIKE 't\\_%'"))
}
