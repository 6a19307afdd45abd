"""``python -m services.dispatch`` runs the service until SIGTERM."""

from services.dispatch import service

if __name__ == "__main__":
    service.run()
