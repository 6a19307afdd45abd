"""``python -m services.packing`` runs the service until SIGTERM."""

from services.packing import service

if __name__ == "__main__":
    service.run()
